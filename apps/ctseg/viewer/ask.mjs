// The question before corrections are lost.
import { make, ownKeys } from './dom.mjs';

/** Ask; resolves to 'submit', 'discard' or 'stay' (also for Escape). */
export function askBeforeLoss(where) {
  return new Promise(resolve => {
    const button = (value, text, main) =>
      make('button', { type: 'submit', value, id: `ctseg-ask-${value}`, className: main ? 'main' : '' }, text);
    const title = make('h2', { id: 'ctseg-ask-title' }, 'Your corrections were not submitted');
    const dialog = make('dialog', { id: 'ctseg-ask' },
      make('form', { method: 'dialog' },
        title,
        make('p', {}, `What shall happen to them before ${where}?`),
        make('div', { className: 'ctseg-row' },
          button('submit', 'Submit them', true),
          button('discard', 'Discard them'),
          button('stay', 'Keep editing'))));
    dialog.setAttribute('aria-labelledby', title.id);
    dialog.onclose = () => {
      const answer = dialog.returnValue || 'stay';
      dialog.remove();
      resolve(answer);
    };
    document.body.append(ownKeys(dialog));
    dialog.showModal();
  });
}
