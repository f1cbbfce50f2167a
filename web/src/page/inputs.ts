/** The sources side by side: one is shown at a time, each hands over what it captured. */
import { Camera } from '../sources/camera';
import { Pad, type Pen } from '../sources/pad';
import { fromFile } from '../sources/photo';
import type { Captured } from '../sources/source';
import { byId } from './dom';

type Kind = 'pad' | 'camera' | 'photo';

const PAD_SIDE = 64; // tasks of grey images up to this many pixels a side have a pad
const AFTER_STROKE_MS = 900; // a digit may take several strokes
const LIVE_PAUSE_MS = 150; // between live frames, so that the phone stays cool

export interface InputsOptions {
  readonly size: readonly [number, number];
  readonly channels: 1 | 3;
  /** Decides; settles when the example has its answer. */
  readonly onCaptured: (captured: Captured) => Promise<void>;
  /** The drawing is cleared. */
  readonly onCleared: () => void;
  readonly onTrouble: (text: string) => void;
}

export class Inputs {
  private kind: Kind;
  private readonly camera = new Camera(byId<HTMLVideoElement>('video'));
  private readonly pad: Pad | null;
  private strokeTimer: ReturnType<typeof setTimeout> | undefined;
  private isLive = false;
  /** The drawing has been handed over: the next stroke begins another one. */
  private isDrawn = false;
  private preview = '';

  constructor(private readonly options: InputsOptions) {
    const hasPad = options.channels === 1 && Math.max(...options.size) <= PAD_SIDE;
    const canvas = byId<HTMLCanvasElement>('pad');
    this.pad = hasPad ? new Pad(canvas, options.size, this.onBegin, this.onStroke, this.onClear, this.onPen) : null;
    byId('tab-pad').hidden = !hasPad;
    this.kind = hasPad ? 'pad' : 'camera';
    byId('clear').addEventListener('click', this.onClear);
    byId('shoot').addEventListener('click', () => void this.shoot());
    byId('live').addEventListener('click', () => void this.toggleLive());
    byId<HTMLInputElement>('file').addEventListener('change', (event) => void this.takeFile(event));
    for (const radio of document.querySelectorAll<HTMLInputElement>('input[name=source]')) {
      radio.checked = radio.value === this.kind;
      radio.addEventListener('change', () => void this.turnTo(radio.value as Kind));
    }
    document.addEventListener('visibilitychange', () => {
      this.stopLive();
      if (this.kind !== 'camera') return;
      if (document.hidden) this.camera.close();
      else void this.openCamera();
    });
    this.show();
  }

  private async turnTo(kind: Kind): Promise<void> {
    this.stopLive();
    if (this.kind === 'camera') this.camera.close();
    this.kind = kind;
    this.show();
    if (kind === 'camera') await this.openCamera();
  }

  private show(): void {
    const { kind } = this;
    byId('pad').hidden = byId('clear').hidden = kind !== 'pad';
    byId('hint').hidden = kind !== 'pad' || this.pad?.isEmpty === false;
    byId('video').hidden = byId('live').hidden = kind !== 'camera';
    byId('shoot').hidden = kind !== 'camera';
    byId('choose').hidden = kind !== 'photo';
    byId('preview').hidden = kind !== 'photo' || this.preview === '';
    byId('wanted').hidden = kind === 'pad';
  }

  private async openCamera(): Promise<boolean> {
    try {
      await this.camera.open();
      return true;
    } catch (error) {
      this.options.onTrouble(error instanceof Error ? error.message : String(error));
      return false;
    }
  }

  private async shoot(): Promise<void> {
    if (!(await this.openCamera())) return;
    try {
      await this.options.onCaptured(await this.camera.shot('shot'));
    } catch (error) {
      this.options.onTrouble(error instanceof Error ? error.message : String(error));
    }
  }

  /** Frame after frame, each when the one before it has its answer. */
  private async toggleLive(): Promise<void> {
    if (this.isLive) {
      this.stopLive();
      return;
    }
    if (!(await this.openCamera())) return;
    this.isLive = true;
    byId('live').setAttribute('aria-pressed', 'true');
    byId('answer').setAttribute('aria-live', 'off'); // a screen reader would never come to an end
    // eslint-disable-next-line @typescript-eslint/no-unnecessary-condition -- it changes while frames are decided
    while (this.isLive) {
      try {
        await this.options.onCaptured(await this.camera.shot('frame'));
      } catch (error) {
        this.options.onTrouble(error instanceof Error ? error.message : String(error));
        this.stopLive();
      }
      await new Promise((resolve) => setTimeout(resolve, LIVE_PAUSE_MS));
    }
  }

  private stopLive(): void {
    this.isLive = false;
    byId('live').setAttribute('aria-pressed', 'false');
    byId('answer').setAttribute('aria-live', 'polite');
  }

  private async takeFile(event: Event): Promise<void> {
    const input = event.target as HTMLInputElement;
    const file = input.files?.[0];
    if (!file) return;
    const image = byId<HTMLImageElement>('preview');
    if (this.preview !== '') URL.revokeObjectURL(this.preview);
    this.preview = image.src = URL.createObjectURL(file);
    image.alt = file.name;
    this.show();
    await this.options.onCaptured(await fromFile(file));
    input.value = ''; // the same photo may be chosen again
  }

  private readonly onPen = (pen: Pen | null): void => {
    showPen(pen);
    byId('hint').hidden = this.pad?.isEmpty !== true;
  };

  private readonly onClear = (): void => {
    clearTimeout(this.strokeTimer);
    this.isDrawn = false;
    this.pad?.clear();
    this.options.onCleared();
  };

  private readonly onBegin = (): void => {
    clearTimeout(this.strokeTimer);
    if (this.isDrawn) this.pad?.clear();
    this.isDrawn = false;
  };

  /** A drawing is decided once: when the pen rests, or the key Enter says so. */
  private readonly onStroke = (isDone: boolean): void => {
    clearTimeout(this.strokeTimer);
    if (isDone) this.handOver();
    else this.strokeTimer = setTimeout(this.handOver, AFTER_STROKE_MS);
  };

  private readonly handOver = (): void => {
    if (this.isDrawn || this.pad?.isEmpty !== false) return;
    this.isDrawn = true;
    void this.pad.captured().then((captured) => captured && this.options.onCaptured(captured));
  };
}

/** Where the pen is that the keys move, and how they do. */
function showPen(pen: Pen | null): void {
  byId('pen').hidden = byId('keys').hidden = pen === null;
  const [mark] = byId('pen').children;
  if (pen === null || !(mark instanceof HTMLElement)) return;
  mark.style.left = `${pen.x * 100}%`;
  mark.style.top = `${pen.y * 100}%`;
  mark.classList.toggle('down', pen.isDown);
}
