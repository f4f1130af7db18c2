// The panel: what an annotator sees and presses, from opening a case to the next one.
import { askBeforeLoss } from './ask.mjs';
import { make, organRow, ownKeys } from './dom.mjs';
import { layout } from './layout.mjs';
import { keepFromLeaving } from './leaving.mjs';
import * as masks from './masks.mjs';
import { Scores, inWords, whyNext } from './scores.mjs';
import * as server from './server.mjs';
import { Training } from './training.mjs';

const REFRESH_MS = 60000;

export class Panel {
  constructor() {
    this.case = null; // what is in front: masks.currentCase()
    this.mask = null; // the segmentation id of the mask that is shown
    this.made = ''; // where it is from, for the annotator
    this.unsaved = false;
    this.busy = false;
    this.tried = ''; // the series whose newest mask was looked for
    const { node, parts } = layout({
      run: () => this.#run(),
      empty: () => this.#empty(),
      submit: () => this.#submit(),
      next: () => this.#next(),
      chosen: () => (this.#draw(), this.scores.look()),
    });
    this.node = ownKeys(node);
    this.parts = parts;
    this.training = new Training(this.parts.training, sentence => this.#fail(sentence));
    const open = (id, score) => this.#openScored(id, score);
    this.scores = new Scores(this.parts.scores, { model: () => this.#scoring(), open });
    keepFromLeaving(() => this.unsaved, where => this.#mayGo(where));
  }

  /** OHIF opens the mode: look for a case, and for its newest mask. */
  enter() {
    this.stop = masks.watch({ changed: id => this.#changed(id), looked: () => this.#look() });
    for (const pressed of this.parts.tools.querySelectorAll('[aria-pressed]')) {
      pressed.ariaPressed = 'false'; // OHIF begins with the grey values on the left button
    }
    this.#refresh();
    this.timer = setInterval(() => this.#refresh(), REFRESH_MS);
    this.training.enter();
    this.scores.enter();
  }

  /** OHIF leaves the mode. */
  leave() {
    this.stop?.();
    clearInterval(this.timer);
    this.training.leave();
    this.scores.leave();
    this.case = this.mask = null;
    this.tried = '';
    this.unsaved = false;
  }

  // -- What is pressed ---------------------------------------------------------------------------------------------

  async #run() {
    if (!(await this.#mayGo('running the model again'))) {
      return;
    }
    const model = this.parts.model.value;
    const begun = Date.now();
    const said = () => `${model} is running: ${Math.round((Date.now() - begun) / 1000)} s`;
    await this.#work(said, async () => {
      const answer = await server.run(model, this.case.study, this.case.series);
      const displaySet = await masks.fetchMask(answer.study, answer.series);
      await this.#show(displaySet);
      this.#results(answer);
      return `${model} ${answer.version} is done (${Math.round((Date.now() - begun) / 1000)} s, ${answer.device}). Check it, correct it, submit it.`;
    });
  }

  async #empty() {
    if (!(await this.#mayGo('beginning an empty mask'))) {
      return;
    }
    await this.#work(() => 'Beginning an empty mask', async () => {
      const labels = this.models[this.parts.model.value].labels;
      this.mask = await masks.emptyMask(this.case, labels, this.mask);
      this.made = 'an empty mask';
      this.#results({});
      return 'Choose an organ and draw it with the brush.';
    });
  }

  async #submit() {
    let stored = false;
    await this.#work(() => 'Submitting the label', async () => {
      try {
        await masks.submit(this.mask, this.case);
      } catch (error) {
        throw error.text === undefined ? error : new Error(server.sentenceIn(error.text, error.status));
      }
      this.unsaved = false;
      this.made = 'the label that you submitted';
      stored = true;
      return 'The label is stored with the study. Go on with the next case.';
    });
    return stored;
  }

  async #next() {
    if (!(await this.#mayGo('the next case'))) {
      return;
    }
    await this.#work(() => 'Looking for the next case', async () => {
      const strategy = this.parts.strategy.value;
      const answer = (await server.nextCase(strategy, this.#scoring())) ?? {};
      if (!answer.id) {
        return 'Every case has its label.';
      }
      this.#why(`This case was ${whyNext(answer, strategy)}`, answer.id);
      if (answer.id === this.case?.series) {
        return 'This case is the next one: it has no label yet. Submit it first.';
      }
      await this.#open(answer.id);
      return 'The next case is open.';
    });
    this.scores.look();
  }

  async #openScored(id, score) {
    if (id === this.case?.series || !(await this.#mayGo('another case'))) {
      return;
    }
    await this.#work(() => 'Opening the case', async () => {
      await this.#open(id);
      this.#why(`This case was chosen from the list: ${inWords(score)}`, id);
      return 'The case is open.';
    });
  }

  async #open(id) {
    const study = await server.studyOf(id);
    masks.removeMask(this.mask);
    this.mask = null;
    masks.openStudy(study);
  }

  /** The model whose scores count: the chosen one, where it has its own. */
  #scoring() {
    const name = this.parts.model.value;
    const model = this.models?.[name];
    return model?.trained && !model.organs ? name : '';
  }

  #why(words, series) {
    this.explained = series;
    this.parts.why.textContent = words;
  }

  // -- What happens in the viewer ----------------------------------------------------------------------------------

  async #look() {
    const now = masks.currentCase();
    if (now?.series !== this.case?.series) {
      this.case = now;
      this.mask = null;
      this.made = '';
      this.#results({});
      if (now && now.series !== this.explained) {
        this.#why('');
      }
    }
    this.#draw();
    if (!now || this.busy || this.mask || this.tried === now.series) {
      return;
    }
    const newest = masks.newestMask(now);
    if (newest?.referencedDisplaySetInstanceUID) {
      this.tried = now.series;
      await this.#work(() => 'Loading the newest mask', async () => {
        await this.#show(newest);
        return '';
      });
    }
  }

  #changed(id) {
    if (!this.busy && id === this.mask && !this.unsaved) {
      this.unsaved = true;
      this.#say('');
      this.#draw();
    }
  }

  async #mayGo(where) {
    if (!this.unsaved) {
      return true;
    }
    const answer = await askBeforeLoss(where);
    if (answer === 'submit') {
      return this.#submit();
    }
    if (answer === 'discard') {
      this.unsaved = false;
      this.#draw();
    }
    return answer === 'discard';
  }

  async #show(displaySet) {
    this.mask = await masks.showMask(displaySet, this.mask);
    this.made = masks.describe(displaySet);
    this.unsaved = false;
  }

  // -- One thing at a time -----------------------------------------------------------------------------------------

  /** Do something that takes a while; `said` gives the words meanwhile, `work` answers with those for afterwards. */
  async #work(said, work) {
    this.busy = true;
    this.#fail('');
    this.#say(said());
    this.#draw();
    const clock = setInterval(() => this.#say(said()), 1000);
    try {
      const words = await work();
      // OHIF tells of the voxels that it has just loaded a moment later: these are no corrections.
      await new Promise(resolve => setTimeout(resolve, 100));
      this.#say(words);
    } catch (error) {
      console.error(error);
      this.#say('');
      this.#fail(error.message);
    } finally {
      clearInterval(clock);
      this.busy = false;
      this.#draw();
    }
    if (!this.mask) {
      this.#look();
    }
  }

  async #refresh() {
    try {
      const info = await server.info();
      this.models = info.models;
      const segmenting = Object.entries(info.models).filter(([, { type }]) => type !== 'classification');
      this.parts.model.fill(segmenting.map(([name, { trained, status, version }]) => ({
        value: name,
        text: trained || status === 'no weights needed' ? `${name} ${version}` : `${name} (${status})`,
      })), server.firstTrained(segmenting));
      this.parts.strategy.fill(Object.keys(info.strategies).map(name => ({ value: name, text: name })));
      this.training.take(info);
      this.#draw();
    } catch (error) {
      this.#fail(error.message);
    }
  }

  #say(words) {
    if (this.parts.status.textContent !== words) {
      this.parts.status.textContent = words;
    }
  }

  #fail(sentence) {
    this.parts.error.textContent = sentence;
    this.parts.error.hidden = !sentence;
    this.parts.error.scrollIntoView({ block: 'nearest' }); // above what is seen when Train was pressed
  }

  #results({ volumes_ml: volumes = {}, quality, notes = [], cut_by_the_scan: cut = [] }) {
    const lines = Object.entries(volumes).map(([organ, ml]) => {
      const { dice, error, outside } = quality?.organs?.[organ] ?? {};
      const known = typeof error === 'number' ? ` \u00b1 ${error.toFixed(2)}` : '';
      const around = outside ? ' (far from what the estimate was fitted on)' : known;
      const estimate = typeof dice === 'number' ? `, estimated Dice ${dice.toFixed(2)}${around}` : '';
      return `${organ}: ${ml.toFixed(1)} ml${estimate}`;
    });
    lines.push(...cut.map(organ => `${organ} reaches the edge of the scan`), ...notes);
    this.parts.results.replaceChildren(...lines.map(line => make('li', {}, line)));
    this.parts.results.hidden = !lines.length;
  }

  /** Bring what is seen into line with what is known. */
  #draw() {
    const { parts, busy, mask, unsaved } = this;
    parts.case.textContent = this.case ? `${this.case.modality}, ${this.case.slices} slices` : 'No case is open.';
    parts.mask.textContent = mask ? `Shown: ${this.made}` : 'No mask yet: run a model, or begin an empty one.';
    parts.unsaved.hidden = !unsaved;
    this.node.setAttribute('aria-busy', String(busy));
    for (const button of [parts.run, parts.empty]) {
      button.disabled = busy || !this.case || !parts.model.value;
    }
    parts.submit.disabled = busy || !mask;
    parts.next.disabled = busy || !parts.strategy.value;
    for (const button of parts.tools.querySelectorAll('button, input')) {
      button.disabled = busy || !mask;
    }
    const organs = masks.organs(mask);
    const kept = JSON.stringify([mask, organs]);
    if (kept !== this.drawn) {
      this.drawn = kept;
      parts.organs.replaceChildren(
        ...organs.map((organ, index) =>
          organRow(organ, index === 0, () => masks.chooseOrgan(mask, organ.index), () => masks.goToOrgan(mask, organ.index))
        )
      );
      if (organs.length) {
        masks.chooseOrgan(mask, organs[0].index);
      }
    }
  }
}
