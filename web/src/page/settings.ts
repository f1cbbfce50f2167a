/** Small things kept on the phone, such as a token; in memory where the browser keeps nothing. */

const memory = new Map<string, string>();

export function setting(name: string): string {
  try {
    return memory.get(name) ?? localStorage.getItem(name) ?? '';
  } catch {
    return ''; // blocked
  }
}

/** @returns whether it outlives the page */
export function keepSetting(name: string, value: string): boolean {
  memory.set(name, value);
  try {
    localStorage.setItem(name, value);
    return true;
  } catch {
    return false;
  }
}
