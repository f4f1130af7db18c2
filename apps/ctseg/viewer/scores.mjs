// What the network does not know of the cases without a label: the list in the panel, and why a case came next.
import { make } from './dom.mjs';
import * as server from './server.mjs';

const POLL_MS = 3000;
const SHOWN = 8; // of the list, the least sure first
const number = value => value.toFixed(2);
const list = values => Object.entries(values ?? {}).filter(([, value]) => typeof value === 'number');

/** The organ of which a score says most: `[organ, value]`, or nothing. */
const most = values => list(values).sort(([, a], [, b]) => b - a)[0];

/** A score in words, such as "entropy 0.41 bits (liver), estimated Dice 0.87". */
export function inWords({ entropy, disagreement, quality } = {}) {
  const words = [];
  const [organ, bits] = most(entropy) ?? [];
  if (organ !== undefined) {
    words.push(`entropy ${number(bits)} bits (${organ})`);
  }
  const [other, share] = most(disagreement) ?? [];
  if (other !== undefined) {
    words.push(`disagreement ${number(share)} (${other})`);
  }
  if (typeof quality?.dice === 'number') {
    words.push(`estimated Dice ${number(quality.dice)}`);
  }
  return words.join(', ');
}

/** Why a case came next, from the answer to "next case". */
export function whyNext({ chosen_by: by, scored_cases: scored, scores, problem }, strategy) {
  const words = [`chosen by ${by ?? strategy}`];
  if (by && by !== strategy) {
    words.push(problem ? problem : `no case is scored yet for ${strategy}`);
  } else if (typeof scored === 'number') {
    words.push(`of ${scored} scored case${scored === 1 ? '' : 's'}`);
  }
  const told = inWords(scores);
  return words.join(', ') + (told ? `: ${told}` : '');
}

/** The list of scored cases; it is asked for only while it is open, since asking begins the scoring. */
export class Scores {
  /** `model` answers the name of the model whose scores count, `open` opens a case of the list. */
  constructor(node, { model, open }) {
    this.model = model;
    this.openCase = open;
    this.words = make('p', { id: 'ctseg-scores-status', role: 'status' });
    this.rows = make('ol', { id: 'ctseg-scores-list' });
    this.box = make('details', { id: 'ctseg-scores', ontoggle: () => this.look() },
      make('summary', {}, 'Scores of the cases'), this.words, this.rows);
    node.append(this.box);
  }

  enter() {
    this.timer = setInterval(() => this.running && this.look(), POLL_MS);
    this.look();
  }

  leave() {
    clearInterval(this.timer);
  }

  async look() {
    const model = this.model();
    if (!this.box.open || !model) {
      return;
    }
    try {
      const told = await server.scores(model);
      if (model === this.model()) {
        this.#draw(told);
      }
    } catch (error) {
      this.running = false;
      this.rows.replaceChildren();
      this.words.textContent = error.message; // said here: the page is not in trouble
    }
  }

  #draw({ model, version, way, runs, scored = {}, left = [], failed = {}, problem, running }) {
    this.running = running && !problem;
    const cases = Object.entries(scored).sort(([, a], [, b]) => (most(b.entropy)?.[1] ?? 0) - (most(a.entropy)?.[1] ?? 0));
    const by = way && way !== 'plain' ? `, ${way}, ${runs} runs` : '';
    const words = [`${model} ${version}${by}: ${cases.length} case${cases.length === 1 ? '' : 's'} without a label scored`];
    if (left.length) {
      words.push(`${left.length} to come`);
    }
    if (Object.keys(failed).length) {
      words.push(`${Object.keys(failed).length} could not be scored`);
    }
    const text = problem || words.join(', ');
    if (this.words.textContent !== text) {
      this.words.textContent = text;
    }
    this.rows.replaceChildren(...cases.slice(0, SHOWN).map(([id, score], index) =>
      make('li', {},
        make('span', { title: id }, inWords(score) || 'nothing found'),
        make('button', {
          type: 'button', className: 'small', ariaLabel: `Open case ${index + 1} of the list`,
          onclick: () => this.openCase(id, score),
        }, 'Open'))));
  }
}
