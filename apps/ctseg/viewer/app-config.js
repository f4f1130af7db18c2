// OHIF's settings, read before it starts. The only place where addresses are made: all are relative to the page, which
// lies at .../viewer/, so that whatever stands before it (a token: /t/<token>/viewer/) is sent along by itself.
(() => {
  const server = new URL('../', document.baseURI).pathname.replace(/\/$/, ''); // "" or "/t/<token>"
  const dicomweb = `${server}/dicom-web`;
  window.ctsegServer = server;
  window.config = {
    routerBasename: null,
    extensions: [new URL('ctseg.mjs', document.baseURI).href],
    modes: [],
    customizationService: {
      mode: {
        '@ohif/mode-segmentation': { rightPanels: { $unshift: ['ctseg.panelModule.ctseg'] } },
      },
    },
    showStudyList: true,
    disableConfirmationPrompts: true, // ours asks, with the words that fit
    maxNumberOfWebWorkers: 2,
    showWarningMessageForCrossOrigin: false,
    showCPUFallbackMessage: true,
    strictZSpacingForVolumeViewport: true,
    showErrorDetails: 'dev',
    investigationalUseDialog: { option: 'never' },
    whiteLabeling: {},
    defaultDataSourceName: 'studies',
    dataSources: [
      {
        namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
        sourceName: 'studies',
        configuration: {
          friendlyName: 'The studies of this server',
          name: 'studies',
          qidoRoot: dicomweb,
          wadoRoot: dicomweb,
          wadoUriRoot: dicomweb,
          qidoSupportsIncludeField: true,
          imageRendering: 'wadors',
          thumbnailRendering: 'wadors',
          enableStudyLazyLoad: true,
          supportsFuzzyMatching: false,
          supportsWildcard: true,
          bulkDataURI: { enabled: false },
          omitQuotationForMultipartRequest: true,
          // Frame by frame: read whole, it trips over the last byte that makes the pixels' length even.
          loadMultiframeAsPart10: false,
          // One bit for each voxel and organ, uncompressed: the form that every PACS and reader takes.
          segmentation: { store: { defaultMode: 'bitmap', transferSyntaxUID: '1.2.840.10008.1.2.1' } },
        },
      },
    ],
  };
})();
