// The panel's page elements, from top to bottom; what they do is told by the caller.
import { make, tool } from './dom.mjs';
import * as masks from './masks.mjs';

const NOT_SUBMITTED = 'Corrected, not submitted yet';

/**
 * Make the panel.
 * @param on what to call: `run`, `empty`, `submit`, `next` when pressed, `chosen` when a choice changes.
 * @returns `{node, parts}`: the panel, and its elements by name.
 */
export function layout(on) {
  const parts = {};
  const style = make('link', { rel: 'stylesheet', href: new URL('ctseg.css', import.meta.url).href });
  const section = (title, ...children) => make('section', {}, make('h2', {}, title), ...children);
  const button = (name, text, pressed, more = {}) =>
    (parts[name] = make('button', { type: 'button', id: `ctseg-${name}`, onclick: pressed, ...more }, text));
  const choice = (name, text) => {
    const select = (parts[name] = make('select', { id: `ctseg-${name}`, onchange: () => on.chosen() }));
    select.fill = (options, preferred) => {
      const chosen = [select.value, preferred].find(one => options.some(({ value }) => value === one));
      const ready = options.map(({ value, text: words }) => make('option', { value }, words));
      select.replaceChildren(...ready);
      if (chosen !== undefined) {
        select.value = chosen;
      }
    };
    return make('div', {}, make('label', { htmlFor: select.id }, text), select);
  };
  const line = (name, tag = 'p', more = {}) => (parts[name] = make(tag, { id: `ctseg-${name}`, ...more }));

  parts.tools = make('div', { id: 'ctseg-tools', role: 'group', ariaLabel: 'Tools' });
  const size = make('input', { type: 'range', id: 'ctseg-radius', min: '1', max: '40', step: '1', value: '8' });
  const width = make('output', { htmlFor: size.id }, '8 mm');
  size.oninput = () => {
    width.textContent = `${size.value} mm`;
    masks.brushRadius(Number(size.value));
  };
  const pick = (name, text, toolName) =>
    tool(parts.tools, name, text, () => {
      masks.chooseTool(toolName);
      masks.brushRadius(Number(size.value));
    });
  parts.tools.append(
    pick('brush', 'Brush', 'CircularBrush'),
    pick('eraser', 'Eraser', 'CircularEraser'),
    pick('window', 'Window', 'WindowLevel'),
    make('button', { type: 'button', id: 'ctseg-undo', onclick: () => masks.undo() }, 'Undo'),
    make('div', { className: 'ctseg-row' }, make('label', { htmlFor: size.id }, 'Radius'), size, width)
  );
  parts.training = make('div', { id: 'ctseg-training' });
  const node = make('div', { id: 'ctseg', role: 'region', ariaLabel: 'Annotation' },
    style,
    line('error', 'p', { role: 'alert', hidden: true }),
    line('status', 'p', { role: 'status' }),
    section('Case', line('case'), line('mask'), line('unsaved', 'p', { hidden: true, textContent: NOT_SUBMITTED })),
    section('Model', choice('model', 'Model'),
      make('div', { className: 'ctseg-row' },
        button('run', 'Run model', () => on.run(), { className: 'main' }),
        button('empty', 'Empty mask', () => on.empty())),
      line('results', 'ul', { hidden: true })),
    section('Correct', line('organs', 'fieldset', { ariaLabel: 'Organ to draw' }), parts.tools),
    section('Submit', button('submit', 'Submit label', () => on.submit(), { className: 'main' })),
    section('Next', choice('strategy', 'Chosen by'), button('next', 'Next case', () => on.next()),
      line('why', 'p', { role: 'status' }), (parts.scores = make('div', {}))),
    section('Training', parts.training)
  );
  return { node, parts };
}
