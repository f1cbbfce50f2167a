/** IndexedDB with promises: as much of it as the queue needs. */

export const WAITING = 'waiting';
export const DECIDED = 'decided';

/** @throws DOMException this browser gives no storage (a private window, say) */
export function openDatabase(name: string): Promise<IDBDatabase> {
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

export function done<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => {
      resolve(request.result);
    };
    request.onerror = () => {
      reject(request.error ?? new Error('the storage failed'));
    };
  });
}

/** Settles with the transaction: what it did is then kept, or none of it. */
export function committed(transaction: IDBTransaction): Promise<void> {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => {
      resolve();
    };
    transaction.onabort = () => {
      reject(transaction.error ?? new Error('the storage gave up'));
    };
  });
}
