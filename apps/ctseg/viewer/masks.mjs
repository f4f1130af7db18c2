// What OHIF knows and does: the case in front, its masks, the brush. No words and no DOM here.

export const PANEL = 'ctseg.panelModule.ctseg';
const LABELMAP = 'Labelmap';
const WAIT_MS = 15000;

let ohif; // {services, commandsManager, extensionManager}
const drawnBy = new Map(); // segmentation id -> the model that drew it first; absent for what was drawn by hand

export function connect({ servicesManager, commandsManager, extensionManager }) {
  ohif = { services: servicesManager.services, commandsManager, extensionManager };
}

export const services = () => ohif.services;

const source = () => ohif.extensionManager.getActiveDataSource()[0];
const instanceOf = displaySet => displaySet.instance ?? displaySet.instances?.[0] ?? displaySet.images?.[0] ?? {};

async function until(found, what) {
  const end = Date.now() + WAIT_MS;
  for (;;) {
    const value = found();
    if (value) {
      return value;
    }
    if (Date.now() > end) {
      throw new Error(`The viewer did not show ${what} in time. Load the page again.`);
    }
    await new Promise(resolve => setTimeout(resolve, 50));
  }
}

/** The viewports that show an image, with that image: [[viewportId, displaySet], ...], the active one first. */
function shown() {
  const { viewportGridService, displaySetService } = ohif.services;
  const { viewports, activeViewportId } = viewportGridService.getState();
  const found = [];
  for (const [id, viewport] of viewports) {
    const sets = (viewport.displaySetInstanceUIDs ?? []).map(uid => displaySetService.getDisplaySetByUID(uid));
    const image = sets.find(set => set && !set.isOverlayDisplaySet && set.Modality !== 'SEG');
    if (image) {
      found.push([id, image]);
    }
  }
  return found.sort(([a], [b]) => Number(b === activeViewportId) - Number(a === activeViewportId));
}

/** The case in front: `{study, series, slices, displaySet}`, or null while there is none. */
export function currentCase() {
  const first = shown()[0];
  if (!first) {
    return null;
  }
  const displaySet = first[1];
  return {
    study: displaySet.StudyInstanceUID,
    series: displaySet.SeriesInstanceUID,
    modality: displaySet.Modality,
    slices: displaySet.instances?.length ?? displaySet.numImageFrames,
    displaySet,
  };
}

/** The newest mask of a case by content date and time, as a display set; null when it has none. */
export function newestMask({ series }) {
  const when = set => {
    const { ContentDate = '', ContentTime = '', SeriesDate = '', SeriesTime = '' } = instanceOf(set);
    return `${ContentDate || SeriesDate} ${ContentTime || SeriesTime}`;
  };
  const masks = ohif.services.displaySetService.activeDisplaySets.filter(
    set => set.Modality === 'SEG' && set.referencedSeriesInstanceUID === series
  );
  return masks.sort((a, b) => when(b).localeCompare(when(a)))[0] ?? null;
}

/** What is said of a mask: its series description and when it was made. */
export function describe(displaySet) {
  const { ContentDate = '', ContentTime = '' } = instanceOf(displaySet);
  const day = String(ContentDate).replace(/^(\d{4})(\d\d)(\d\d)$/, '$1-$2-$3');
  const time = String(ContentTime).replace(/^(\d\d)(\d\d).*$/, '$1:$2');
  return [displaySet.SeriesDescription || 'mask without a description', day, time].filter(Boolean).join(', ');
}

/** OHIF keeps what it read of a study, and would never see a series that is new. */
function forget(study) {
  source().deleteStudyMetadataPromise(`${source().getConfig().name}:${study}`);
}

/** Read a mask that the server has just stored, and return its display set. */
export async function fetchMask(study, series) {
  const { displaySetService } = ohif.services;
  forget(study);
  await source().retrieve.series.metadata({ StudyInstanceUID: study, filters: { seriesInstanceUID: [series] } });
  forget(study);
  return until(() => displaySetService.getDisplaySetsForSeries(series)[0], 'the new mask');
}

/** Lay a mask over every viewport that shows its image, in place of `before`; returns its segmentation id. */
export async function showMask(displaySet, before) {
  await displaySet.load({ headers: {} });
  const id = displaySet.displaySetInstanceUID;
  const segments = [instanceOf(displaySet).SegmentSequence ?? []].flat();
  const byModel = segments.find(({ SegmentAlgorithmType: type }) => type && type !== 'MANUAL');
  if (byModel) {
    drawnBy.set(id, byModel.SegmentAlgorithmName ?? 'a model');
  }
  await lay(id, displaySet.referencedSeriesInstanceUID, before);
  return id;
}

/** Begin an empty mask with a model's organs, for drawing by hand; returns its segmentation id. */
export async function emptyMask({ displaySet, series }, labels, before) {
  const segments = Object.fromEntries(
    Object.entries(labels).map(([label, code], index) => [code, { segmentIndex: code, label, active: index === 0 }])
  );
  const id = await ohif.services.segmentationService.createLabelmapForDisplaySet(displaySet, {
    label: 'drawn by hand',
    segments,
  });
  await lay(id, series, before);
  return id;
}

async function lay(id, series, before) {
  const { segmentationService } = ohif.services;
  if (before && before !== id && segmentationService.getSegmentation(before)) {
    segmentationService.remove(before);
  }
  for (const [viewportId, image] of shown()) {
    if (image.SeriesInstanceUID === series) {
      await segmentationService.addSegmentationRepresentation(viewportId, { segmentationId: id, type: LABELMAP });
      segmentationService.setActiveSegmentation(viewportId, id);
    }
  }
  // OHIF turns to its own tab when the first mask appears.
  ohif.services.panelService.activatePanel(PANEL, true);
}

export function removeMask(id) {
  if (id && ohif.services.segmentationService.getSegmentation(id)) {
    ohif.services.segmentationService.remove(id);
  }
}

/** The organs of a mask: [{index, label, color}], in order. */
export function organs(id) {
  const { segmentationService } = ohif.services;
  const segmentation = id && segmentationService.getSegmentation(id);
  const viewportId = shown()[0]?.[0];
  return Object.values(segmentation?.segments ?? {})
    .filter(Boolean)
    .map(({ segmentIndex, label }) => ({
      index: segmentIndex,
      label,
      color: viewportId ? segmentationService.getSegmentColor(viewportId, id, segmentIndex) : [128, 128, 128],
    }))
    .sort((a, b) => a.index - b.index);
}

/** Choose the organ that the brush paints, and move there. */
export function chooseOrgan(id, index) {
  ohif.services.segmentationService.setActiveSegment(id, index);
}

/** Scroll to the middle of an organ. */
export function goToOrgan(id, index) {
  const viewportId = shown()[0]?.[0];
  if (viewportId) {
    ohif.services.segmentationService.jumpToSegmentCenter(id, index, viewportId);
  }
}

/** Give the left mouse button to a tool: CircularBrush, CircularEraser, WindowLevel. */
export function chooseTool(toolName) {
  const { toolGroupService } = ohif.services;
  for (const toolGroupId of toolGroupService.getToolGroupIds()) {
    ohif.commandsManager.runCommand('setToolActive', { toolName, toolGroupId });
  }
}

export function brushRadius(mm) {
  ohif.commandsManager.runCommand('setBrushSize', { value: mm });
}

export const undo = () => ohif.commandsManager.runCommand('undo');

/** Store a mask on the server as DICOM SEG; resolves when it is there. What a model drew first stays said. */
export async function submit(id, { displaySet }) {
  const { imageLoader } = window.cornerstone;
  await Promise.all(displaySet.imageIds.map(imageId => imageLoader.loadAndCacheImage(imageId)));
  const { dataset } = ohif.commandsManager.runCommand('generateSegmentation', {
    segmentationId: id,
    options: { SeriesDescription: 'Label' }, // the server says more
  });
  for (const segment of [dataset.SegmentSequence].flat()) {
    segment.SegmentAlgorithmType = drawnBy.has(id) ? 'SEMIAUTOMATIC' : 'MANUAL';
    segment.SegmentAlgorithmName = drawnBy.get(id) ?? '';
  }
  dataset.StudyID = dataset.StudyID === 'No Study ID' ? '' : dataset.StudyID;
  try {
    await source().store.dicom(dataset);
  } catch (error) {
    throw Object.assign(new Error(error.message), {
      status: error.request?.status ?? error.status,
      text: error.request?.responseText ?? '',
    });
  }
  forget(dataset.StudyInstanceUID);
  return dataset.SeriesInstanceUID;
}

/** Open another study in the same page. */
export function openStudy(study) {
  forget(study);
  ohif.commandsManager.runCommand('navigateHistory', { to: `/segmentation?StudyInstanceUIDs=${study}` });
}

/** Call `changed(segmentationId)` after each change of a mask's voxels, `looked()` when another image is in front. */
export function watch({ changed, looked }) {
  const { segmentationService, displaySetService, cornerstoneViewportService, viewportGridService } = ohif.services;
  const subscriptions = [
    segmentationService.subscribe(segmentationService.EVENTS.SEGMENTATION_DATA_MODIFIED, event =>
      changed(event.segmentationId ?? event)
    ),
    displaySetService.subscribe(displaySetService.EVENTS.DISPLAY_SETS_ADDED, looked),
    cornerstoneViewportService.subscribe(cornerstoneViewportService.EVENTS.VIEWPORT_DATA_CHANGED, looked),
    viewportGridService.subscribe(viewportGridService.EVENTS.ACTIVE_VIEWPORT_ID_CHANGED, looked),
  ];
  return () => subscriptions.forEach(({ unsubscribe }) => unsubscribe());
}
