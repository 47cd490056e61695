// The page: what is shown, the list of genes, the link that restores it, and regions.

import { Grid, Panes } from "./panes.js";
import { NAMES, palette } from "./palettes.js";
import { PatientMap } from "./patients.js";

const LISTED = 300; // genes at once: the search finds the others
const LABELS = { he: "H&E", measured: "measured", rates: "predicted", spread: "deviation", drawn: "drawn" };
const KEYS = { 1: "he", 2: "measured", 3: "rates", 4: "spread", 5: "drawn" };
const SET = "signature"; // of cell types and of other gene sets, as the server calls both
const NO_TYPE = 255;
const $ = (id) => document.getElementById(id);
const state = {
  slide: 0, name: "", kind: "gene", cohort: "all", sort: "skill", panes: ["he", "rates"], opacity: 0.8, high: null,
  palette: "magma", region: null, view: null, list: "gene",
};
let opening = 0, region = null, failedAt = -Infinity; // the last region that was answered; when a tile last failed
let patients = null; // the map of all patients, once it was looked at
let slides = [], slide = null, genes = null, grid = null, types = null, order = [], active = 0, selecting = false, values = {};
const loaded = new Map(); // by slide: what does not change

const panes = new Panes($("panes"), { moved: remember, pointed, drawn: (corners) => select(corners), failed: tileFailed });

// what the server says

async function asked(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is 'tario view' still running?");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Error(told.reason ?? `${path}: ${answer.status}`);
  }
  return answer;
}

function tell(error) {
  console.warn(error);
  $("error").textContent = error.message ?? String(error);
  $("error").hidden = false;
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => ($("error").hidden = true), 12000);
}

const guarded = (action) => (...given) => Promise.resolve(action(...given)).catch(tell);

// the link

function remember() {
  clearTimeout(remember.timer);
  remember.timer = setTimeout(() => {
    state.view = panes.view() ?? state.view;
    const words = new URLSearchParams();
    words.set("slide", slides[state.slide]?.label ?? "");
    for (const name of ["name", "kind", "list", "cohort", "sort", "palette", "opacity"]) words.set(name, state[name]);
    words.set("panes", state.panes.join("."));
    if (state.high !== null) words.set("high", state.high);
    if (!$("patients").hidden) words.set("patients", patients?.found.columns[patients.column].name ?? "");
    if (state.view) words.set("view", [state.view.x, state.view.y, state.view.zoom].map((one) => +one.toFixed(4)).join("_"));
    if (state.region) words.set("region", state.region.map((corner) => corner.map(Math.round).join("_")).join("~"));
    history.replaceState(null, "", `#${words}`);
  }, 150);
}

function restore() {
  const words = new URLSearchParams(location.hash.slice(1));
  const numbered = slides.findIndex((one) => one.label === words.get("slide"));
  state.slide = Math.max(0, numbered);
  for (const name of ["name", "kind", "list", "cohort", "sort", "palette"]) state[name] = words.get(name) ?? state[name];
  if (!NAMES.includes(state.palette)) state.palette = "magma";
  if (![...$("sort").options].some((one) => one.value === state.sort)) state.sort = "skill";
  if (words.has("opacity")) state.opacity = Math.min(1, Math.max(0, Number(words.get("opacity")) || 0));
  if (words.has("high")) state.high = positive(words.get("high"));
  if (words.has("panes")) state.panes = words.get("panes").split(".").filter((name) => name in LABELS);
  const numbers = (text) => text.split("_").map(Number);
  if (words.has("view")) {
    const [x, y, zoom] = numbers(words.get("view"));
    if ([x, y, zoom].every((one) => Math.abs(one) < 1e7) && zoom > 0) state.view = { x, y, zoom };
  }
  if (words.has("region")) {
    const corners = words.get("region").split("~").map(numbers);
    if (corners.length > 2 && corners.flat().every(Number.isFinite)) state.region = corners;
  }
}

const positive = (text) => (Number(text) > 0 && Number.isFinite(Number(text)) ? Number(text) : null);

/** A tile that does not come is said once in a while: a slide has many. */
async function tileFailed(url) {
  if (!url || performance.now() - failedAt < 10000) return;
  failedAt = performance.now();
  await asked(url).catch(tell);
}

// a slide

async function open(number) {
  const own = ++opening; // another may be opened before this one has come
  state.slide = number;
  slide = slides[number];
  $("slide").value = number;
  $("banner").textContent = slide.banner;
  $("banner").hidden = !slide.banner;
  const warnings = [...slide.warnings, ...(slide.he ? [] : [`H&E not shown: ${slide.he_missing}`])];
  $("warnings").textContent = warnings.join(" · ");
  $("warnings").hidden = !warnings.length;
  $("about").textContent =
    `${slide.bins.toLocaleString()} bins of ${slide.bin_um} µm, ${slide.genes.toLocaleString()} genes; ${slide.decoding}; ` +
    `model ${slide.model}, trained on ${slide.trained_on} tissue`;
  if (!loaded.has(number)) {
    const [of_genes, places] = await Promise.all([
      asked(`/api/slides/${number}/genes?of=${slide.key}`).then((answer) => answer.json()),
      asked(`/api/slides/${number}/places?of=${slide.key}`).then((answer) => answer.arrayBuffer()),
    ]);
    loaded.set(number, { genes: of_genes, grid: new Grid(new Float32Array(places), slides[number].bin_um) });
  }
  if (own !== opening) return;
  values = {};
  ({ genes, grid, types } = loaded.get(number));
  LABELS.spread = slide.spread_between ? `deviation between ${slide.spread_between}` : "deviation";
  const cohorts = slide.cohorts.map(({ name, patients }) => option(name, `${name} (${patients} patients)`));
  $("cohort").replaceChildren(...(cohorts.length ? cohorts : [option("", "not validated")]));
  if (!slide.cohorts.some(({ name }) => name === state.cohort)) state.cohort = slide.cohorts[0]?.name ?? "";
  $("cohort").value = state.cohort;
  $("cohort").disabled = !cohorts.length;
  state.panes = state.panes.filter((name) => name === "he" || slide.arrays.includes(name));
  if (!state.panes.length) state.panes = ["he", "rates"];
  const sets = slide.signatures.map(({ name }) => name);
  if (!(state.kind === SET ? sets : genes.symbols).includes(state.name)) {
    state.kind = "gene";
    state.name = "";
  }
  sortGenes();
  if (!state.name) state.name = genes.symbols[order[0]];
  layOut();
  listKinds();
  list();
  await paint();
  if (types === undefined && slide.signatures.some(({ kind }) => kind === "cell type")) guarded(readTypes)(number);
}

/** Of each bin the cell type that is strongest, for the pointer: read once a map is shown. */
async function readTypes(number) {
  const answer = await asked(`/api/slides/${number}/strongest?of=${slides[number].key}`).then((found) => found.arrayBuffer());
  const bins = slides[number].bins;
  const found = { type: new Uint8Array(answer, 0, bins), score: new Float32Array(answer.slice(bins)) };
  loaded.get(number).types = found;
  if (number === state.slide) types = found;
  document.body.dataset.types = number;
}

function listKinds() {
  for (const button of $("lists").children) {
    const kind = button.dataset.list;
    button.disabled = kind !== "gene" && !slide.signatures.some((one) => one.kind === kind);
    if (button.disabled && state.list === kind) state.list = "gene";
  }
  for (const button of $("lists").children) button.setAttribute("aria-pressed", button.dataset.list === state.list);
}

function layOut() {
  for (const name of Object.keys(LABELS)) {
    const button = $(`pane-${name}`);
    button.disabled = name !== "he" && !slide.arrays.includes(name);
    button.setAttribute("aria-pressed", state.panes.includes(name));
  }
  const names = Object.keys(LABELS).filter((name) => state.panes.includes(name));
  panes.show(state.slide, slide, names, LABELS);
  if (state.view) panes.look(state.view);
  panes.selecting = selecting;
  panes.outline(state.region);
}

// maps

const url = (array, name) =>
  `/api/slides/${state.slide}/values/${array}?name=${encodeURIComponent(name)}&of=${slides[state.slide].key}`;

async function paint() {
  const began = performance.now();
  const { name, kind, slide: number } = state;
  if (kind === SET && !state.panes.includes("rates")) {
    state.panes.push("rates"); // a score is of what is predicted
    layOut();
  }
  const arrays = kind === SET ? ["rates"] : state.panes.filter((pane) => pane !== "he");
  const found = await Promise.all(arrays.map(async (array) => {
    const answer = await asked(url(kind === SET ? SET : array, name));
    return [array, new Float32Array(await answer.arrayBuffer())];
  }));
  if (name !== state.name || kind !== state.kind || number !== state.slide) return; // another
  values = Object.fromEntries(found);
  const high = scale(values.rates ?? values[arrays[0]]);
  const colours = palette(state.palette);
  for (const array of state.panes.filter((pane) => pane !== "he")) {
    if (!arrays.includes(array)) {
      panes.map(array, null);
      panes.title(array, `${LABELS[array]}: of genes alone`);
      continue;
    }
    const own = array === "spread" ? scale(values.spread, null) : high; // what varies is far less than what is there
    panes.map(array, grid.draw(values[array], own, colours));
    panes.title(array, array === "spread" ? `${LABELS.spread}, to ${own.high.toPrecision(2)}` : LABELS[array]);
  }
  panes.opacity(state.opacity);
  legend(high, colours);
  list();
  showRegion();
  $("panes").dataset.shown = `${kind}:${name}`;
  $("panes").dataset.shownMs = (performance.now() - began).toFixed(1);
  remember();
}

/** To the 99.5 % quantile of these values, or what was asked: one for measured, predicted and drawn. */
function scale(of, asked = state.high) {
  const sorted = Float32Array.from(of ?? [0, 1]).filter((one) => !Number.isNaN(one)).sort();
  const quantile = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? 1;
  if (state.kind === SET) return { low: quantile(0.005), high: quantile(0.995) || 1 };
  return { low: 0, high: asked ?? (quantile(0.995) || sorted.at(-1) || 1) };
}

function legend({ low, high }, colours) {
  const context = $("legend").getContext("2d");
  const image = context.createImageData(256, 12);
  for (let i = 0; i < image.data.length / 4; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = colours[3 * (i % 256) + c];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  const unit = state.kind === SET ? "score" : slide.unit;
  $("range").textContent = `${low.toPrecision(2)} to ${high.toPrecision(3)} ${unit}`;
  $("legend").setAttribute("aria-label", `Colour scale from ${$("range").textContent}`);
}

function pointed(um) {
  if (!um || !grid) return ($("pointer").textContent = "point at a bin");
  const bin = grid.bin(...um);
  const where = `${um[0].toFixed(0)}, ${um[1].toFixed(0)} µm`;
  if (bin === undefined) return ($("pointer").textContent = `${where}: no bin`);
  const told = Object.entries(values).map(([array, of]) => `${state.kind === SET ? "score" : LABELS[array]} ${of[bin].toPrecision(4)}`);
  const type = types && types.type[bin] !== NO_TYPE
    ? `; strongest cell type ${slide.signatures[types.type[bin]].name} ${types.score[bin].toFixed(2)}` : "";
  $("pointer").textContent = `${where}, bin ${bin}: ${state.name} ${told.join(", ")}${type}`;
}

// the list

function sortGenes() {
  const of = genes.cohorts[state.cohort];
  order = genes.symbols.map((_, at) => at);
  const unknown = -Infinity;
  const keys = {
    name: null,
    mean: genes.mean,
    skill: of ? of.excess_over_density.map((one, at) => (one === null ? unknown : one + (of.validated[at] ? 10 : 0))) : null,
  };
  const key = keys[state.sort];
  if (key) order.sort((a, b) => key[b] - key[a] || a - b);
  else if (state.sort === "name") order.sort((a, b) => genes.symbols[a].localeCompare(genes.symbols[b]));
}

function matches() {
  const wanted = $("search").value.trim().toLowerCase();
  const sets = slide.signatures
    .filter(({ name, kind }) => (wanted ? name.toLowerCase().includes(wanted) : kind === state.list))
    .map(({ name, kind }) => ({ kind: SET, name, told: kind }));
  const starts = [], within = [];
  for (const at of wanted || state.list === "gene" ? order : []) {
    const name = genes.symbols[at].toLowerCase();
    if (!wanted || name.startsWith(wanted)) starts.push(at);
    else if (name.includes(wanted)) within.push(at);
  }
  const [first, last] = [starts, within].map((some) => some.map((at) => ({ kind: "gene", name: genes.symbols[at], at })));
  return [...first, ...sets, ...last];
}

function list() {
  const found = matches();
  const of = genes.cohorts[state.cohort];
  active = Math.max(0, Math.min(active, Math.min(found.length, LISTED) - 1));
  const rows = found.slice(0, LISTED).map(({ kind, name, at, told }, place) => {
    const row = document.createElement("li");
    const validated = kind === SET || Boolean(of?.validated[at]);
    row.id = `gene-${place}`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", kind === state.kind && name === state.name);
    row.classList.toggle("active", place === active);
    row.classList.toggle("unknown", !validated);
    row.dataset.name = name;
    row.dataset.kind = kind;
    const figure = document.createElement("span");
    figure.className = "figure";
    const excess = of?.excess_over_density[at];
    figure.textContent = kind === SET ? told : !validated ? "not validated"
      : `r ${of.held_out_r[at]}, +${excess} over density`;
    row.append(document.createTextNode(name), figure);
    return row;
  });
  $("genes").replaceChildren(...rows);
  $("genes").setAttribute("aria-activedescendant", rows.length ? `gene-${active}` : "");
  $("search").setAttribute("aria-activedescendant", rows.length ? `gene-${active}` : "");
  const validated = of ? `, ${of.validated.reduce((sum, one) => sum + one, 0).toLocaleString()} validated in ${state.cohort}` : "";
  const all = genes.symbols.length + slide.signatures.length;
  $("listed").textContent = `${found.length.toLocaleString()} of ${all.toLocaleString()}${validated}`;
}

const choose = guarded(async (row) => {
  if (!row) return;
  state.name = row.dataset.name;
  state.kind = row.dataset.kind;
  await paint();
});

function move(by) {
  active = Math.max(0, Math.min(active + by, $("genes").children.length - 1));
  list();
  $(`gene-${active}`)?.scrollIntoView({ block: "nearest" });
}

// regions

const select = guarded(async (corners) => {
  setSelecting(false);
  clear();
  const number = state.slide;
  panes.outline(corners);
  try {
    region = await asked(`/api/slides/${number}/region`, post(corners)).then((answer) => answer.json());
  } catch (error) {
    panes.outline(null);
    throw error;
  }
  if (number !== state.slide) return clear();
  state.region = corners;
  showRegion();
  remember();
});

function showRegion() {
  const found = region;
  if (!found) return;
  $("selected-title").textContent = `${found.bins.toLocaleString()} bins, ${found.area_mm2.toFixed(3)} mm²`;
  const highest = found.symbols.map((name, at) => [name, found.means.rates[at]]).sort((a, b) => b[1] - a[1]).slice(0, 12);
  const of_shown = found.symbols.indexOf(state.name);
  if (of_shown >= 0) highest.unshift([`${state.name} (shown)`, found.means.rates[of_shown]]);
  $("selected-genes").replaceChildren(...highest.map(([name, mean]) => {
    const row = document.createElement("li");
    row.textContent = `${name} ${mean.toPrecision(4)}`;
    return row;
  }));
  const scores = Object.entries(found.scores).sort((a, b) => b[1] - a[1]);
  $("selected-sets").replaceChildren(...scores.map(([name, score]) => {
    const row = document.createElement("li");
    row.textContent = `${name} ${score >= 0 ? "+" : ""}${score.toFixed(2)}`;
    return row;
  }));
  $("selected").hidden = false;
  $("selected").dataset.bins = found.bins;
}

function selectView() {
  const corners = panes.inView();
  if (corners) select(corners);
}

const post = (corners) => ({
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ polygon: corners }),
});

function setSelecting(on) {
  selecting = on;
  panes.selecting = on;
  $("region").setAttribute("aria-pressed", on);
}

function clear() {
  state.region = region = null;
  delete $("selected").dataset.bins;
  panes.outline(null);
  $("selected").hidden = true;
  remember();
}

// patients

const showPatients = guarded(async (on, column = null) => {
  $("patients").hidden = !on;
  $("patients-button").setAttribute("aria-pressed", on);
  if (on && !patients) {
    if (showPatients.asking) return;
    showPatients.asking = true;
    let found, places;
    try {
      [found, places] = await Promise.all([
        asked("/api/patients").then((answer) => answer.json()),
        asked("/api/patients/places").then((answer) => answer.arrayBuffer()),
      ]);
    } finally {
      showPatients.asking = false;
    }
    patients = new PatientMap($("patients"), found, new Float32Array(places), {
      remember, chosen: guarded(async (number) => { if (number !== state.slide) { state.view = null; clear(); await open(number); } }),
    });
  }
  const wanted = on ? patients.found.columns.findIndex(({ name }) => name === column) : -1;
  if (wanted >= 0) patients.colour(wanted);
  patients?.draw();
  remember();
});

// controls

function option(value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  return made;
}

function toggle(name) {
  if ($(`pane-${name}`).disabled) return;
  const on = state.panes.includes(name);
  if (on && state.panes.length === 1) return;
  state.view = panes.view() ?? state.view;
  state.panes = on ? state.panes.filter((one) => one !== name) : [...state.panes, name];
  layOut();
  guarded(paint)();
}

function wire() {
  for (const name of Object.keys(LABELS)) $(`pane-${name}`).addEventListener("click", () => toggle(name));
  $("slide").addEventListener("change", guarded(async (event) => { state.view = null; clear(); await open(Number(event.target.value)); }));
  $("cohort").addEventListener("change", (event) => { state.cohort = event.target.value; sortGenes(); list(); remember(); });
  $("sort").addEventListener("change", (event) => { state.sort = event.target.value; sortGenes(); list(); remember(); });
  $("opacity").addEventListener("input", (event) => { state.opacity = Number(event.target.value); panes.opacity(state.opacity); remember(); });
  $("high").addEventListener("change", guarded(async (event) => {
    state.high = positive(event.target.value);
    event.target.value = state.high ?? "";
    await paint();
  }));
  $("patients-button").addEventListener("click", () => showPatients($("patients").hidden));
  $("in-view").addEventListener("click", () => selectView());
  $("palette").addEventListener("change", guarded(async (event) => { state.palette = event.target.value; await paint(); }));
  $("region").addEventListener("click", () => setSelecting(!selecting));
  $("home").addEventListener("click", () => panes.home());
  $("clear").addEventListener("click", clear);
  $("export").addEventListener("click", guarded(async () => {
    const answer = await asked(`/api/slides/${state.slide}/region.csv`, post(state.region));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = `${slide.name}_region.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  }));
  $("link").addEventListener("click", guarded(async () => { await navigator.clipboard.writeText(location.href); $("link").textContent = "Copied"; setTimeout(() => ($("link").textContent = "Copy link"), 1500); }));
  $("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  });
  $("search").addEventListener("input", () => { active = 0; list(); });
  for (const place of ["search", "genes"]) {
    $(place).addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") move(1);
      else if (event.key === "ArrowUp") move(-1);
      else if (event.key === "Enter") choose($(`gene-${active}`));
      else return;
      event.preventDefault();
    });
  }
  $("lists").addEventListener("click", ({ target: { dataset } }) => {
    if (!dataset.list) return;
    state.list = dataset.list;
    $("search").value = "";
    active = 0;
    listKinds();
    list();
    remember();
  });
  $("genes").addEventListener("click", (event) => choose(event.target.closest("li")));
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { $("search").focus(); $("search").select(); event.preventDefault(); }
    else if (event.key in KEYS) toggle(KEYS[event.key]);
    else if (event.key === "r" || event.key === "R") setSelecting(!selecting);
    else if (event.key === "v" || event.key === "V") selectView();
    else if (event.key === "0") panes.home();
    else if ((event.key === "p" || event.key === "P") && !$("patients-button").hidden) showPatients($("patients").hidden);
    else if (event.key === "Escape") setSelecting(false);
  });
}

async function begin() {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
  slides = await asked("/api/slides").then((answer) => answer.json());
  $("slide").replaceChildren(...slides.map((one, number) => option(number, one.label)));
  $("patients-button").hidden = !slides[0]?.patients;
  if (slides[0]?.patients) $("patients-button").textContent = `All ${slides[0].patients.toLocaleString()} patients`;
  const asked_patients = new URLSearchParams(location.hash.slice(1)).get("patients");
  restore();
  $("sort").value = state.sort;
  $("opacity").value = state.opacity;
  $("palette").value = state.palette;
  $("high").value = state.high ?? "";
  wire();
  await open(state.slide);
  if (state.region) await select(state.region);
  if (asked_patients !== null && slides[0].patients) await showPatients(true, asked_patients);
  document.body.dataset.ready = "1";
}

guarded(begin)();
