// Requests to our server. Every answer that is no success becomes an Error whose message is the server's one sentence.

const root = () => window.ctsegServer; // set by app-config.js, the only place that knows what stands before /viewer/

async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(root() + path, {
      method,
      headers: body === undefined ? {} : { 'Content-Type': 'application/json' },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Error('The server does not answer. Is it still running? Your corrections are still here; try again.');
  }
  const text = await answer.text();
  if (!answer.ok) {
    throw new Error(sentenceIn(text, answer.status));
  }
  return text ? JSON.parse(text) : null;
}

/** The sentence of a refusal: FastAPI puts it into `detail`. */
export function sentenceIn(text, status) {
  try {
    const { detail } = JSON.parse(text);
    if (typeof detail === 'string') {
      return detail.charAt(0).toUpperCase() + detail.slice(1);
    }
  } catch {
    // not JSON: said below
  }
  return `The server answered with the error ${status}; its log says more.`;
}

/** Models, strategies, trainers and the state of the newest training, as MONAI Label describes them. */
export const info = () => ask('GET', '/info/');

/**
 * The name of the model to begin with, of `[name, entry of /info/]`: a trained one of its own before one made of others,
 * and none that needs a caution while there is another.
 */
export function firstTrained(models) {
  const trained = models.filter(([, model]) => model.trained);
  const plain = trained.filter(([, model]) => !model.caution);
  return (plain.find(([, model]) => !model.organs) ?? plain[0] ?? trained[0] ?? models[0])?.[0];
}

/** Run a model; answers `{series, study, model, version, volumes_ml, notes, quality?, ...}`. */
export const run = (model, study, series) => ask('POST', '/viewer/run', { model, study, series });

/** The next case by a strategy: `{id: series UID, chosen_by?, scores?}`, or nothing when every case has its label. */
export const nextCase = (strategy, model) =>
  ask('POST', `/activelearning/${encodeURIComponent(strategy)}`, model ? { model } : {});

/** What a model does not know of the cases without a label; asking begins the scoring. */
export const scores = model => ask('GET', `/scores/${encodeURIComponent(model)}`);

export const train = (model, options = {}) => ask('POST', `/train/${encodeURIComponent(model)}`, options);
export const stopTraining = () => ask('DELETE', '/train/');

/** Whether a training runs now. MONAI Label answers 404 when not. */
export async function isTraining() {
  const answer = await fetch(`${root()}/train/?check_if_running=true`);
  return answer.ok;
}

/** The newest training's task: `{status, details}`; null when there was none. */
export async function trainTask() {
  const answer = await fetch(`${root()}/train/`);
  return answer.ok ? answer.json() : null;
}

/** The study that a series belongs to. */
export async function studyOf(series) {
  const found = await ask('GET', `/dicom-web/series?SeriesInstanceUID=${series}&includefield=StudyInstanceUID`);
  const study = (found ?? []).find(one => one['0020000E']?.Value?.[0] === series)?.['0020000D']?.Value?.[0];
  if (!study) {
    throw new Error('The next case is not on the studies\' server any more. Ask for the next case again.');
  }
  return study;
}
