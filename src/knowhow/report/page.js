"use strict";
(async () => {
  const ink = (name) => `var(--${name})`;
  const family = getComputedStyle(document.body).fontFamily;
  const config = {
    background: "transparent", font: family, aria: false, padding: { left: 2, right: 10, top: 16, bottom: 2 },
    view: { stroke: null, continuousHeight: 200 },
    axis: {
      labelColor: ink("ink-2"), titleColor: ink("ink-3"), domainColor: ink("line"), tickColor: ink("line"), gridColor: ink("line"),
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400, titlePadding: 10, labelPadding: 6, tickSize: 0, gridOpacity: 0.8,
    },
    axisQuantitative: { tickCount: 6 },
    axisY: { labelFontSize: 12.5, domain: false },
    text: { color: ink("ink") },
  };
  // ast: expressions are interpreted, so the page needs no permission to evaluate code
  const options = { actions: false, renderer: "svg", ast: true, config, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
  const specs = JSON.parse(document.getElementById("charts").textContent);
  let failed = 0;
  for (const place of document.querySelectorAll(".chart")) {
    try {
      await vegaEmbed(place, specs[place.dataset.chart], options);
    } catch (error) {
      failed += 1;
      place.textContent = "This chart could not be drawn; its numbers are in the tables.";
      console.error(error);
    }
  }
  document.documentElement.dataset.charts = failed ? "failed" : "ready";
})();
