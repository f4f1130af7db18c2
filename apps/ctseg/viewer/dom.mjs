// A few words for making page elements.

/** Make an element: `make('p', {id: 'a'}, 'text', child)`. Text is text, never markup. */
export function make(tag, properties = {}, ...children) {
  const { role, htmlFor, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  if (role) {
    element.setAttribute('role', role);
  }
  if (htmlFor) {
    element.setAttribute('for', htmlFor);
  }
  element.append(...children);
  return element;
}

/** A button that stays pressed until another of its group is. */
export function tool(group, name, text, chosen) {
  const button = make('button', { type: 'button', id: `ctseg-${name}`, ariaPressed: 'false' }, text);
  button.onclick = () => {
    for (const other of group.querySelectorAll('[aria-pressed]')) {
      other.ariaPressed = String(other === button);
    }
    chosen();
  };
  return button;
}

/** An organ: its colour, its name to choose it for the brush, and a button that goes to its middle. */
export function organRow({ index, label, color }, checked, choose, go) {
  const id = `ctseg-organ-${index}`;
  const radio = make('input', { type: 'radio', name: 'ctseg-organ', id, checked, onchange: choose });
  const patch = make('span', { className: 'patch', ariaHidden: 'true' });
  patch.style.background = `rgb(${color.slice(0, 3).join(' ')})`;
  const show = make('button', { type: 'button', className: 'small', onclick: go, ariaLabel: `Go to ${label}` }, 'Go to');
  return make('div', { className: 'ctseg-row' }, radio, patch, make('label', { htmlFor: id }, label), show);
}

/** Keep the keys that press a button from OHIF's shortcuts, which would take them away (Space resets the view). */
export function ownKeys(element) {
  element.addEventListener('keydown', event => [' ', 'Enter', 'Escape'].includes(event.key) && event.stopPropagation());
  return element;
}
