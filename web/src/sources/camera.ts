/** The phone's camera: single shots, or frame after frame. */
import { bytesOf, nameOf, type Captured } from './source';

const WIDTH = 640;
const HEIGHT = 480;
const QUALITY = 0.92;

export class Camera {
  private stream: Promise<MediaStream> | null = null;
  private readonly canvas = document.createElement('canvas');

  constructor(private readonly video: HTMLVideoElement) {}

  /**
   * Twice is fine.
   *
   * @throws Error there is none, or it may not be used; the text is for people
   */
  async open(): Promise<void> {
    const stream = (this.stream ??= this.begin());
    try {
      await stream;
    } catch (error) {
      if (this.stream === stream) this.stream = null;
      throw error;
    }
  }

  close(): void {
    void this.stream?.then(stop, ignored);
    this.stream = null;
    this.video.srcObject = null;
  }

  /** The frame that is shown now, as a JPEG. */
  async shot(source: 'shot' | 'frame'): Promise<Captured> {
    const { videoWidth, videoHeight } = this.video;
    this.canvas.width = videoWidth;
    this.canvas.height = videoHeight;
    const context = this.canvas.getContext('2d');
    if (!context || videoWidth === 0) throw new Error('The camera shows nothing yet.');
    context.drawImage(this.video, 0, 0);
    return { id: nameOf(source), bytes: await bytesOf(this.canvas, 'image/jpeg', QUALITY) };
  }

  private async begin(): Promise<MediaStream> {
    const devices = (navigator as { mediaDevices?: MediaDevices }).mediaDevices;
    if (!devices) throw new Error('The camera needs a page over HTTPS (or from this machine itself).');
    let stream: MediaStream;
    try {
      const wanted = { facingMode: 'environment', width: { ideal: WIDTH }, height: { ideal: HEIGHT } };
      stream = await devices.getUserMedia({ video: wanted, audio: false });
    } catch (error) {
      const name = error instanceof DOMException ? error.name : '';
      throw new Error(
        name === 'NotAllowedError' ? 'The camera may not be used: allow it for this page.' : 'There is no camera here.',
      );
    }
    this.video.srcObject = stream;
    try {
      await this.video.play();
    } catch (error) {
      stop(stream); // closed before its first frame
      if (!(error instanceof DOMException && error.name === 'AbortError')) throw error;
    }
    return stream;
  }
}

function stop(stream: MediaStream): void {
  for (const track of stream.getTracks()) track.stop();
}

function ignored(): void {
  // whoever opened the camera knows
}
