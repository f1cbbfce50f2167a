/**
 * A pad to draw on, for tasks of small grey images such as the digits: a light stroke on a dark ground, brought to the
 * task's size the way those digits were scanned: fitted into a box, its centre of mass in the middle.
 */
import { bytesOf, nameOf, type Captured } from './source';

const INSIDE = 20 / 28; // of the image's side that the drawing fits into
const STROKE = 1 / 13; // of the pad's side

const KEY_STEP = 1 / 20;
const STEPS: Readonly<Record<string, readonly [number, number]>> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

/** Where the keys have the pen, in shares of the pad's side, and whether it draws. */
export interface Pen {
  x: number;
  y: number;
  isDown: boolean;
}

export interface Ink {
  readonly left: number;
  readonly top: number;
  readonly width: number;
  readonly height: number;
  /** Centre of mass. */
  readonly x: number;
  readonly y: number;
}

export class Pad {
  private readonly context: CanvasRenderingContext2D;
  private last: [number, number] | null = null;
  private hasInk = false;
  /** Null: keys were not used. */
  private pen: Pen | null = null;

  /**
   * @param onBegin called before each stroke
   * @param onStroke called after each stroke of a pointer; `isDone`: no other one follows, by a key
   * @param onKeyClear called where a key clears
   * @param onPen called with where the pen is that keys move (null: nowhere), and when there is ink, or none any more
   */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly size: readonly [height: number, width: number],
    private readonly onBegin: () => void,
    private readonly onStroke: (isDone: boolean) => void,
    private readonly onKeyClear: () => void,
    private readonly onPen: (pen: Pen | null) => void = () => undefined,
  ) {
    const context = canvas.getContext('2d', { willReadFrequently: true });
    if (!context) throw new Error('this browser gives no canvas to draw on');
    this.context = context;
    this.clear();
    canvas.addEventListener('pointerdown', this.begin);
    canvas.addEventListener('pointermove', this.move);
    canvas.addEventListener('keydown', this.key);
    canvas.addEventListener('blur', () => {
      this.onPen(null);
    });
    for (const name of ['pointerup', 'pointercancel'] as const) canvas.addEventListener(name, this.end);
  }

  get isEmpty(): boolean {
    return !this.hasInk;
  }

  clear(): void {
    this.context.fillStyle = '#000';
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.last = this.pen = null;
    this.hasInk = false;
    this.onPen(null);
  }

  /** What is drawn, as a PNG of the task's size; null where nothing is. */
  async captured(): Promise<Captured | null> {
    const { width, height } = this.canvas;
    const ink = inkOf(this.context.getImageData(0, 0, width, height).data, width, height);
    if (ink === null) return null;
    const [rows, columns] = this.size;
    const small = document.createElement('canvas');
    [small.width, small.height] = [columns, rows];
    const context = small.getContext('2d');
    if (!context) return null;
    context.fillStyle = '#000';
    context.fillRect(0, 0, columns, rows);
    const scale = (Math.min(rows, columns) * INSIDE) / Math.max(ink.width, ink.height);
    context.imageSmoothingQuality = 'high';
    context.drawImage(
      this.canvas,
      columns / 2 - ink.x * scale,
      rows / 2 - ink.y * scale,
      width * scale,
      height * scale,
    );
    return { id: nameOf('drawn'), bytes: await bytesOf(small, 'image/png') };
  }

  private readonly begin = (event: PointerEvent): void => {
    this.onBegin();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.at(event);
    this.draw(this.last);
    event.preventDefault();
  };

  private readonly move = (event: PointerEvent): void => {
    if (this.last === null) return;
    // Only secure contexts have all the points since the last frame.
    const { getCoalescedEvents } = event as { getCoalescedEvents?: () => PointerEvent[] };
    for (const one of getCoalescedEvents?.call(event) ?? []) this.draw(this.at(one));
    this.draw(this.at(event));
  };

  private readonly end = (): void => {
    if (this.last === null) return;
    this.last = null;
    this.onStroke(false);
  };

  private readonly key = (event: KeyboardEvent): void => {
    const step = STEPS[event.key];
    if (event.key === 'Escape') this.onKeyClear();
    if (event.key === 'Enter') this.onStroke(true);
    if (step === undefined && event.key !== ' ') return;
    event.preventDefault();
    const pen = this.pen ?? { x: 0.5, y: 0.25, isDown: true };
    const side = this.canvas.width;
    if (step === undefined) {
      pen.isDown = !pen.isDown;
      this.pen = pen;
    } else {
      if (pen.isDown) this.onBegin(); // which may clear
      this.pen = pen;
      this.last = [pen.x * side, pen.y * side];
      pen.x = Math.min(Math.max(pen.x + step[0] * KEY_STEP, 0), 1);
      pen.y = Math.min(Math.max(pen.y + step[1] * KEY_STEP, 0), 1);
      if (pen.isDown) this.draw([pen.x * side, pen.y * side]);
      this.last = null;
    }
    this.onPen(pen);
  };

  private draw(to: [number, number]): void {
    const { context } = this;
    context.strokeStyle = '#fff';
    context.lineWidth = this.canvas.width * STROKE;
    context.lineCap = context.lineJoin = 'round';
    context.beginPath();
    context.moveTo(...(this.last ?? to));
    context.lineTo(...to);
    context.stroke();
    this.last = to;
    if (!this.hasInk) {
      this.hasInk = true;
      this.onPen(this.pen);
    }
  }

  private at(event: PointerEvent): [number, number] {
    const box = this.canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    ];
  }
}

/** Where the light pixels are; null where there are none. */
export function inkOf(rgba: Uint8ClampedArray, width: number, height: number): Ink | null {
  let [left, top, right, bottom] = [width, height, -1, -1];
  let [mass, x, y] = [0, 0, 0];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const light = rgba[4 * (row * width + column)] ?? 0;
      if (light === 0) continue;
      left = Math.min(left, column);
      right = Math.max(right, column);
      top = Math.min(top, row);
      bottom = Math.max(bottom, row);
      mass += light;
      x += light * (column + 0.5);
      y += light * (row + 0.5);
    }
  }
  if (mass === 0) return null;
  return { left, top, width: right - left + 1, height: bottom - top + 1, x: x / mass, y: y / mass };
}
