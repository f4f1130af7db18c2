// The ways out of a case inside the page, which OHIF would take at once: asked about while corrections are unsaved.

/**
 * Watch the ways out.
 * @param unsaved answers whether something would be lost.
 * @param mayGo asks the annotator; resolves to true when the page may go on.
 */
export function keepFromLeaving(unsaved, mayGo) {
  let returning = false;

  /** The browser's back button, inside the page: OHIF would leave the case at once. */
  async function back(event) {
    if (returning) {
      returning = false;
      event.stopImmediatePropagation();
    } else if (unsaved()) {
      event.stopImmediatePropagation();
      returning = true;
      history.go(1);
      if (await mayGo('leaving the case')) {
        history.back();
      }
    }
  }

  /** The page's own way back to the list of studies, pressed with corrections that were not submitted. */
  async function toTheList(event) {
    const link = event.target.closest?.('[data-cy="return-to-work-list"]');
    if (!link || !unsaved()) {
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
    if (await mayGo('leaving the case')) {
      link.click();
    }
  }

  window.addEventListener('beforeunload', event => unsaved() && event.preventDefault());
  window.addEventListener('popstate', back, true);
  document.addEventListener('click', toTheList, true);
}
