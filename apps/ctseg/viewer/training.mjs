// The part of the panel that trains a model on the submitted labels, and shows how far it is.
import { make } from './dom.mjs';
import * as server from './server.mjs';

const POLL_MS = 3000;

export class Training {
  constructor(node, fail) {
    this.fail = fail;
    this.running = false;
    this.model = make('select', { id: 'ctseg-trainer', onchange: () => this.#chosen() });
    this.startButton = make('button', { type: 'button', id: 'ctseg-train', onclick: () => this.#start() }, 'Train');
    this.cpuButton = make('button', {
      type: 'button', id: 'ctseg-train-cpu', hidden: true, onclick: () => this.#start({ device: 'cpu' }),
    }, 'Train on the CPU (slow)');
    this.stopButton = make('button', { type: 'button', id: 'ctseg-stop', onclick: () => this.#stop() }, 'Stop');
    this.bar = make('progress', { id: 'ctseg-progress', ariaLabel: 'Progress of the training', hidden: true });
    this.words = make('p', { id: 'ctseg-train-status', role: 'status' });
    node.append(
      make('div', {}, make('label', { htmlFor: this.model.id }, 'Model to train'), this.model),
      make('div', { className: 'ctseg-row' }, this.startButton, this.stopButton, this.cpuButton),
      this.bar,
      this.words
    );
    this.#draw();
  }

  enter() {
    this.timer = setInterval(() => this.running && this.#look(), POLL_MS);
    this.#look();
  }

  leave() {
    clearInterval(this.timer);
  }

  /** Take what `/info/` says: which models can be trained, and the numbers of their newest training. */
  take({ trainers, models, train_stats: stats }) {
    this.trainers = trainers;
    const names = Object.keys(trainers ?? {});
    if (names.join() !== this.names) {
      this.names = names.join();
      this.model.replaceChildren(...names.map(name => make('option', { value: name }, name)));
      this.model.value = server.firstTrained(names.map(name => [name, models?.[name] ?? {}])) ?? '';
    }
    this.stats = stats ?? {};
    this.#draw();
  }

  /** Another model: its own newest training is shown, unless one runs. */
  #chosen() {
    if (!this.running) {
      this.trained = this.ended = undefined;
    }
    this.cpuButton.hidden = true;
    this.#draw();
  }

  /** Without a GPU the server refuses, unless the CPU is asked for: only then is that choice offered. */
  async #start(options = {}) {
    this.fail('');
    this.cpuButton.hidden = true;
    this.trained = this.model.value;
    this.before = this.stats?.[this.trained]?.start_ts;
    try {
      await server.train(this.model.value, options);
      this.running = true;
    } catch (error) {
      this.fail(error.message);
      this.cpuButton.hidden = this.trainers?.[this.trained]?.gpu !== false || options.device === 'cpu';
    }
    this.#draw();
  }

  async #stop() {
    try {
      await server.stopTraining();
    } catch (error) {
      this.fail(error.message);
    }
    this.#look();
  }

  async #look() {
    try {
      const before = this.running;
      this.running = await server.isTraining();
      if (this.running && !this.trained) {
        this.trained = (await server.trainTask())?.request?.model; // another page started it
      }
      if (before || this.running) {
        this.take(await server.info());
      }
      if (before && !this.running) {
        const task = await server.trainTask();
        this.ended = task?.status ?? '';
        const said = (task?.details ?? []).filter(line => line.startsWith('ctseg: ')).pop();
        if (said && this.ended !== 'DONE') {
          this.fail(said.replace('ctseg: ', ''));
        }
      }
    } catch (error) {
      this.fail(error.message);
    }
    this.#draw();
  }

  #draw() {
    const newest = this.stats?.[this.trained ?? this.model.value] ?? {};
    // A training that has just been asked for has no numbers yet: these are the ones before.
    const stats = this.running && newest.start_ts !== undefined && newest.start_ts === this.before ? {} : newest;
    const { epoch = 0, total_epochs: total = 0, history = [], best_metric: best } = stats;
    this.startButton.disabled = this.running || !this.model.value;
    this.stopButton.disabled = !this.running;
    this.cpuButton.disabled = this.running;
    this.bar.hidden = !this.running;
    this.bar.max = total || 1;
    this.bar.value = epoch;
    const last = history[history.length - 1] ?? {};
    const words = [];
    if (this.running) {
      words.push(total ? `Training: epoch ${epoch} of ${total}` : 'The training is starting');
    } else if (this.ended && this.ended !== 'DONE') {
      words.push('The training ended without a new network; the one before stays in use');
    } else if (stats.verdict) {
      words.push(`The training of ${stats.version} is done: ${stats.verdict}`);
    }
    if (this.running && epoch && typeof last.loss === 'number') {
      words.push(`loss ${last.loss.toFixed(3)}`);
    }
    if (this.running && epoch && typeof best === 'number') {
      words.push(`best validation Dice ${best.toFixed(3)}`);
    }
    const text = words.join(', ');
    if (this.words.textContent !== text) {
      this.words.textContent = text;
    }
  }
}
