// The extension that OHIF loads (app-config.js names it): one panel on the right, first in its row.
import { connect } from './masks.mjs';
import { Panel } from './panel.mjs';

const ID = 'ctseg';
let panel;

// OHIF wants a React component, and React cannot be reached from outside: this is the element that React.createElement
// would make, whose `ref` is called with the page's node.
const element = ref => ({
  $$typeof: Symbol.for('react.element'),
  type: 'div',
  key: null,
  ref,
  props: { style: { flex: '1 1 0', minHeight: 0 } }, // what the row of tabs leaves; the panel scrolls in itself
  _owner: null,
  _store: {},
});
const mount = node => node && node.append(panel.node);

export default {
  id: ID,
  preRegistration(managers) {
    connect(managers);
    panel = new Panel();
  },
  getPanelModule: () => [
    { name: ID, iconName: 'tab-segmentation', iconLabel: 'ctseg', label: 'ctseg', component: () => element(mount) },
  ],
  onModeEnter() {
    panel.enter();
  },
  onModeExit() {
    panel.leave();
  },
};
