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
for (const sample of document.querySelectorAll(".sample")) {
  const behind = sample.querySelector(".behind");
  if (!behind) continue;
  const told = behind.querySelector("p"), idle = told.textContent;
  const traces = JSON.parse(behind.dataset.traces), lines = [...behind.querySelectorAll(".line")], units = [...sample.querySelectorAll(".unit")];
  const show = (node) => {
    const trace = node && "unit" in node.dataset ? traces[node.dataset.unit] : null;
    told.textContent = node ? node.dataset.told : idle;
    lines.forEach((cell, layer) => { cell.className = `cell line${trace ? ` ${trace[layer] < 0 ? "cool" : "heat"}-${Math.abs(trace[layer])}` : ""}`; });
    const heats = node && "heats" in node.dataset ? JSON.parse(node.dataset.heats) : null;
    units.forEach((unit) => {
      unit.classList.toggle("here", unit === node);
      unit.classList.remove(...[...unit.classList].filter((name) => name.startsWith("lit-")));
      if (heats) unit.classList.add(`lit-${heats[unit.dataset.unit]}`);
    });
    sample.classList.toggle("asked", Boolean(node && node.classList.contains("said")));
  };
  sample.addEventListener("pointerover", (event) => show(event.target.closest("[data-told]")));
  sample.addEventListener("pointerleave", () => show(null));
  sample.addEventListener("focusout", () => show(null));
  sample.addEventListener("focusin", (event) => show(event.target.closest("[data-told]")));
  sample.querySelector(".text").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !units.length) return;
    event.preventDefault();
    const next = units[Math.min(Math.max(units.findIndex((unit) => unit.classList.contains("here")) + step, 0), units.length - 1)];
    show(next);
    next.scrollIntoView({ block: "nearest" });
  });
}
