/** The developer's corner: timings per member, how the page started, which backend runs the models. */
import type { Bundle } from '../models/bundle';
import { canCheck } from '../models/bundle';
import { hasWebGpu, type Backend } from '../models/runtime';
import { chooseBackend } from './backend';
import type { Decided, Device } from './device';
import { byId, make } from './dom';
import { bytesText, msText } from './words';

export interface Started {
  /** Milliseconds since navigation. */
  readonly readyMs: number;
  readonly firstDecisionMs: number | null;
  readonly isKept: boolean;
}

export class Corner {
  private last: Decided | null = null;

  constructor(
    private readonly device: Device,
    private readonly started: () => Started,
    private readonly onForgetToken: () => void,
    private readonly onClear: () => Promise<void>,
  ) {
    byId('corner').addEventListener('toggle', () => {
      this.show();
    });
  }

  update(decided: Decided): void {
    this.last = decided;
    if (byId<HTMLDetailsElement>('corner').open) this.show();
  }

  private show(): void {
    byId('corner-content').replaceChildren(this.timings(), this.facts(), this.backends(), this.tools());
  }

  private timings(): HTMLElement {
    const head = ['member', 'last', 'median', '95%', 'load'].map((text) => make('th', { text }));
    const rows = this.device.members.map((member) => {
      const times = [...member.timesMs].sort((a, b) => a - b);
      const at = (share: number): string => {
        const time = times[Math.min(Math.floor(share * times.length), times.length - 1)];
        return time === undefined ? '–' : msText(time);
      };
      const last = member.timesMs[member.timesMs.length - 1];
      const cells = [last === undefined ? '–' : msText(last), at(0.5), at(0.95), msText(member.loadMs)];
      return make('tr', {}, [make('th', { text: member.name }), ...cells.map((text) => make('td', { text }))]);
    });
    const caption = make('caption', { text: `${this.device.backend}, one thread` });
    const table = make('table', {}, [caption, make('thead', {}, [make('tr', {}, head)]), make('tbody', {}, rows)]);
    return make('div', { className: 'scroll' }, [table]);
  }

  private facts(): HTMLElement {
    const { bundle, cascade } = this.device;
    const started = this.started();
    const facts: [string, string][] = [
      ['task', `${bundle.task}, ${bundle.labels.length} labels, fingerprint ${bundle.fingerprint}`],
      ['models', `${bytesText(sizeOf(bundle))}, ${canCheck() ? 'sha256 checked' : 'not checked: no HTTPS'}`],
      ['tiers', cascade.tiers.map((tier) => tier.name).join(', then ')],
      ['ready after', `${msText(started.readyMs)}${started.isKept ? ', from what was kept here' : ''}`],
      ['first decision after', started.firstDecisionMs === null ? '–' : msText(started.firstDecisionMs)],
    ];
    if (this.last) {
      const { decision, decodeMs, latencyMs } = this.last;
      facts.push(['last example', `${decision.id}, ${bytesText(this.last.captured.length)}`]);
      facts.push(['last times', `${msText(decodeMs)} to decode, ${msText(latencyMs)} in all`]);
      facts.push(['last votes', decision.tierVotes.map((vote) => vote.toFixed(2)).join(', ')]);
      if (decision.call?.serverMs !== undefined) facts.push(['of it at the server', msText(decision.call.serverMs)]);
      if (decision.degraded !== null) facts.push(['degraded', decision.degraded]);
    }
    return make(
      'dl',
      { className: 'facts' },
      facts.map(([name, value]) => make('div', {}, [make('dt', { text: name }), make('dd', { text: value })])),
    );
  }

  private backends(): HTMLElement {
    const button = (backend: Backend, text: string): HTMLButtonElement => {
      const made = make('button', { text });
      made.type = 'button';
      made.setAttribute('aria-pressed', String(this.device.backend === backend));
      made.addEventListener('click', () => {
        chooseBackend(backend, this.device.bundle);
        location.reload();
      });
      return made;
    };
    const webgpu = button('webgpu', 'WebGPU');
    webgpu.disabled = true;
    void hasWebGpu().then((isHere) => {
      webgpu.disabled = !isHere;
    });
    return make('p', { className: 'row' }, [button('wasm', 'WebAssembly'), webgpu]);
  }

  private tools(): HTMLElement {
    const forget = make('button', { text: 'Forget the token' });
    forget.type = 'button';
    forget.addEventListener('click', () => {
      this.onForgetToken();
    });
    const clear = make('button', { text: 'Delete what is kept here' });
    clear.type = 'button';
    clear.addEventListener('click', () => {
      void this.onClear();
    });
    return make('p', { className: 'row' }, [forget, clear]);
  }
}

function sizeOf(bundle: Bundle): number {
  const members = bundle.tiers.flatMap((tier) => ('members' in tier ? tier.members : []));
  return members.reduce((sum, member) => sum + member.n_bytes, 0);
}
