"use strict";

const { specs, charts } = JSON.parse(document.getElementById("data").textContent);
const sections = new Map(); // element → {picked: [method], views: [vega view]}
const root = document.body;

const quiet = "currentColor";
const config = {
  background: "transparent",
  font: getComputedStyle(root).fontFamily, // so that the room for labels is measured right
  view: { stroke: null },
  axis: {
    labelColor: quiet, titleColor: quiet, tickColor: quiet, domainColor: quiet, gridColor: quiet,
    gridOpacity: 0.12, domainOpacity: 0.4, tickOpacity: 0.4, labelFontSize: 12, titleFontSize: 12,
    titleFontWeight: "normal", labelOverlap: true,
  },
  axisX: { grid: false, tickCount: { signal: "ceil(width / 60)" } },
  axisY: { tickCount: { signal: "ceil(height / 50)" } },
  line: { strokeWidth: 2 },
};

/** The points of a chart, one object each. */
function unpack({ length, columns }) {
  const take = Object.entries(columns).map(([name, column]) => {
    if (Array.isArray(column)) return [name, (at) => column[at]];
    if (column !== null && typeof column === "object") return [name, (at) => column.words[column.places[at]]];
    return [name, () => column];
  });
  return Array.from({ length }, (_, at) => Object.fromEntries(take.map(([name, value]) => [name, value(at)])));
}

async function draw(element) {
  const chart = charts[element.dataset.chart];
  const values = unpack(chart);
  const crowded = new Set(values.map((point) => point.task ?? point.step)).size > 60;
  const spec = {
    ...structuredClone(specs[chart.spec]),
    data: { name: "points", values },
    width: "container",
    height: "container",
    autosize: { type: "fit", contains: "padding" },
  };
  const { view } = await vegaEmbed(element, spec, {
    renderer: "svg", actions: false, config: { ...config, point: { size: crowded ? 4 : 20 } }, tooltip: { theme: "page" }, defaultStyle: true,
  });
  const section = sections.get(element.closest("section"));
  section.views.push(view);
  if (section.picked.length) await view.signal("picked", section.picked).runAsync();
}

/** Draw one after the other, so that the page can be read meanwhile; what is folded away waits until it is opened. */
async function drawAll(within) {
  for (const element of within.querySelectorAll(".chart:not([data-drawn])")) {
    if (element.closest("details:not([open])")) continue;
    element.dataset.drawn = "";
    await draw(element);
    await new Promise((resolve) => setTimeout(resolve));
  }
}

function pick(section, methods) {
  const state = sections.get(section);
  state.picked = methods;
  section.querySelector(".legend").classList.toggle("some", methods.length > 0);
  for (const button of section.querySelectorAll(".legend button")) {
    button.setAttribute("aria-pressed", methods.includes(button.dataset.method));
  }
  for (const view of state.views) view.signal("picked", methods).runAsync();
}

/** A click shows one method alone, or all again; with Shift, one more or one less. */
function clickLegend(event) {
  const section = event.currentTarget.closest("section");
  const { method } = event.currentTarget.dataset;
  const { picked } = sections.get(section);
  if (event.shiftKey) pick(section, picked.includes(method) ? picked.filter((m) => m !== method) : [...picked, method]);
  else pick(section, picked.length === 1 && picked[0] === method ? [] : [method]);
}

/** Numbers by size and words by letters; what is missing comes last either way. */
function sort(event) {
  const head = event.currentTarget.closest("th");
  const body = head.closest("table").tBodies[0];
  const descending = head.ariaSort !== "descending";
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = descending ? "descending" : "ascending";
  const key = (row) => row.cells[head.cellIndex].dataset.value ?? "";
  const order = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const sign = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return descending ? -sign : sign;
  };
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
}

function copy(event) {
  const button = event.currentTarget;
  navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent)
    .then(() => { button.textContent = "copied"; }, () => { button.textContent = "select and copy by hand"; });
}

/** What the page was like before it was reloaded, as far as the browser keeps such things. */
function remembered(place) {
  try { return JSON.parse(sessionStorage.getItem(place)) ?? {}; } catch { return {}; }
}

function remember(place, state) {
  try { sessionStorage.setItem(place, JSON.stringify(state)); } catch { /* then the page starts from the top */ }
}

/** While runs are followed: reload the page, and leave it as the reader had it. */
function follow(seconds) {
  const place = `supple ${location.pathname}`;
  const folds = [...document.querySelectorAll("details")];
  const { open = [], picked = {}, scroll = 0 } = remembered(place);
  for (const fold of folds) fold.open = open.includes(fold.id);
  for (const section of sections.keys()) if (picked[section.id]?.length) pick(section, picked[section.id]);
  scrollTo(0, scroll);
  setInterval(() => {
    if (document.querySelector("#vg-tooltip-element.visible")) return; // somebody is reading
    const picks = [...sections].map(([section, state]) => [section.id, state.picked]);
    remember(place, {
      open: folds.filter((fold) => fold.open).map((fold) => fold.id), picked: Object.fromEntries(picks), scroll: scrollY,
    });
    location.reload();
  }, 1000 * seconds);
}

for (const section of document.querySelectorAll("section:has(.legend)")) sections.set(section, { picked: [], views: [] });
for (const button of document.querySelectorAll(".legend button")) button.addEventListener("click", clickLegend);
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", sort);
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", copy);
for (const fold of document.querySelectorAll("details")) fold.addEventListener("toggle", () => drawAll(fold));
if (root.dataset.every) follow(Number(root.dataset.every));
drawAll(root).then(() => { root.dataset.ready = ""; });
