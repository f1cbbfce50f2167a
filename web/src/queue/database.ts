/**
 * Where the queue's records are: in IndexedDB, and in memory what the browser would not take (a private window, a full
 * or a blocked storage). Each operation is one transaction, which happens as a whole or not at all.
 */

export const WAITING = 'waiting';
export const DECIDED = 'decided';
export type Table = typeof WAITING | typeof DECIDED;

export interface Row {
  readonly id: string;
  readonly at: number;
}

/** Records to write, and ids to delete, by table. */
export interface Change {
  readonly put?: readonly (readonly [Table, Row])[];
  readonly remove?: readonly (readonly [Table, string])[];
}

export class Database {
  private readonly memory: Record<Table, Map<string, Row>> = { waiting: new Map(), decided: new Map() };

  /** @param onTrouble called with why, whenever a record is in memory alone */
  private constructor(
    private readonly kept: IDBDatabase | null,
    private readonly onTrouble: (why: string) => void,
  ) {}

  /** Never fails: without storage everything is in memory. */
  static async open(name: string, onTrouble: (why: string) => void = () => undefined): Promise<Database> {
    try {
      return new Database(await opened(name), onTrouble);
    } catch (error) {
      onTrouble(nameOf(error));
      return new Database(null, onTrouble);
    }
  }

  /** Every record of a table, the latest first. */
  async all(table: Table): Promise<Row[]> {
    const rows = [...this.memory[table].values()];
    try {
      const transaction = this.kept?.transaction(table);
      if (transaction) rows.push(...((await done(transaction.objectStore(table).getAll())) as Row[]));
    } catch {
      // what is in memory is all there is
    }
    return rows.sort((a, b) => b.at - a.at);
  }

  async get(table: Table, id: string): Promise<Row | undefined> {
    return this.memory[table].get(id) ?? (await this.all(table)).find((row) => row.id === id);
  }

  /**
   * Change records.
   *
   * @param unless the change is not made where this table has no record of that id
   * @returns whether it was made
   */
  async change({ put = [], remove = [] }: Change, unless?: readonly [Table, string]): Promise<boolean> {
    const isInMemory = unless !== undefined && this.memory[unless[0]].has(unless[1]);
    if (this.kept && !isInMemory) {
      try {
        return await this.changeKept(this.kept, { put, remove }, unless);
      } catch (error) {
        this.onTrouble(nameOf(error));
      }
    }
    if (unless && !isInMemory) return false;
    for (const [table, id] of remove) this.memory[table].delete(id);
    for (const [table, row] of put) this.memory[table].set(row.id, row);
    return true;
  }

  close(): void {
    this.kept?.close();
  }

  private async changeKept(
    kept: IDBDatabase,
    { put, remove }: Required<Change>,
    unless?: readonly [Table, string],
  ): Promise<boolean> {
    const transaction = kept.transaction([WAITING, DECIDED], 'readwrite');
    const settled = committed(transaction);
    settled.catch(() => undefined); // it is awaited below, unless something before that fails
    const isThere = !unless || (await done(transaction.objectStore(unless[0]).getKey(unless[1]))) !== undefined;
    if (isThere) {
      for (const [table, id] of remove) transaction.objectStore(table).delete(id);
      for (const [table, row] of put) transaction.objectStore(table).put(row);
    }
    await settled;
    for (const [table, id] of isThere ? remove : []) this.memory[table].delete(id);
    for (const [table, row] of isThere ? put : []) this.memory[table].delete(row.id);
    return isThere;
  }
}

function opened(name: string): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(WAITING, { keyPath: 'id' }).createIndex('at', 'at');
      request.result.createObjectStore(DECIDED, { keyPath: 'id' }).createIndex('at', 'at');
    };
    request.onsuccess = () => {
      request.result.onversionchange = () => {
        request.result.close();
      };
      resolve(request.result);
    };
    request.onerror = () => {
      reject(request.error ?? new Error('no storage'));
    };
  });
}

function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => {
      resolve(request.result);
    };
    request.onerror = () => {
      reject(request.error ?? new Error('the storage failed'));
    };
  });
}

function committed(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => {
      resolve();
    };
    transaction.onabort = () => {
      reject(transaction.error ?? new Error('the storage gave up'));
    };
  });
}

function nameOf(error: unknown): string {
  return error instanceof Error || error instanceof DOMException ? error.name : String(error);
}
