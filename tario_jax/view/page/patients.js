// All patients on one map: a place each, in the colours of a column; a click opens the slide of those whose maps are here.

const COLOURS = ["#0b5cad", "#c2571a", "#2b8a57", "#7a4fa3", "#a08a13", "#b03a5b", "#3aa6b9", "#6b7683", "#d98fb0",
  "#7fb04f", "#5a3d2b", "#e0b03a"];
const YES = "#c2571a", NO = "#9db4cc", UNKNOWN = "#c9ced4";
const NEAR_PX = 12; // of a place, to be pointed at
const MARGIN_PX = 24;

export class PatientMap {
  /** told: of a mistake; chosen(slide): a slide is to be opened. */
  constructor(root, found, places, { chosen, remember }) {
    const part = (name) => root.querySelector(`[data-part=${name}]`);
    Object.assign(this, { root, found, chosen, remember, part, column: 0, pointed: -1, only: null, opened: null });
    const number = found.names.length;
    this.x = places.subarray(0, number);
    this.y = places.subarray(number);
    this.view = { x: 0, y: 0, zoom: 1 };
    part("columns").replaceChildren(...found.columns.map(({ name }, at) => new Option(name, at)));
    part("note").textContent = [found.banner, found.note].filter(Boolean).join(" ");
    part("names").replaceChildren(...found.names.slice(0, 5000).map((name) => new Option(name)));
    part("columns").addEventListener("change", (event) => this.colour(Number(event.target.value)));
    part("find").addEventListener("input", (event) => this.find(event.target.value.trim()));
    part("find").addEventListener("keydown", (event) => event.key === "Enter" && this.open(this.pointed));
    part("open").addEventListener("click", () => this.open(this.pointed));
    part("legend").addEventListener("click", ({ target }) => {
      const row = target.closest("button");
      if (!row) return;
      const code = Number(row.dataset.code);
      this.only = this.only === code ? null : code;
      this.colour(this.column);
    });
    this.listen(part("canvas"));
    new ResizeObserver(() => this.draw()).observe(part("canvas"));
    this.colour(0);
  }

  listen(canvas) {
    let from = null, moved = false;
    const at = (event) => [event.offsetX, event.offsetY];
    canvas.addEventListener("pointercancel", () => { from = null; });
    canvas.addEventListener("pointerdown", (event) => { if (event.button) return; from = at(event); moved = false; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointerup", (event) => {
      if (from && !moved) this.open(this.nearest(...at(event)));
      from = null;
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (!from) {
        const near = this.nearest(x, y);
        return near < 0 ? undefined : this.point(near); // who was pointed at stays, so that their slide can be opened
      }
      if (!moved && Math.hypot(x - from[0], y - from[1]) < 4) return;
      moved = true;
      this.view.x += x - from[0];
      this.view.y += y - from[1];
      from = [x, y];
      this.draw();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const factor = Math.exp(-event.deltaY / 400);
      const [x, y] = at(event), zoom = Math.min(200, Math.max(0.5, this.view.zoom * factor));
      const by = zoom / this.view.zoom;
      this.view = { zoom, x: x - by * (x - this.view.x), y: y - by * (y - this.view.y) };
      this.draw();
    }, { passive: false });
    canvas.addEventListener("dblclick", () => { this.view = { x: 0, y: 0, zoom: 1 }; this.draw(); });
  }

  /** Places in px of the canvas. */
  spread(width, height) {
    const range = (of) => of.reduce(([low, high], one) => [Math.min(low, one), Math.max(high, one)], [Infinity, -Infinity]);
    this.box ??= [range(this.x), range(this.y)];
    const [[left, right], [low, high]] = this.box;
    const side = Math.max(right - left, high - low) || 1;
    const scale = (Math.min(width, height) - 2 * MARGIN_PX) / side;
    const { x, y, zoom } = this.view;
    const middle = [width / 2, height / 2];
    return (at) => [
      x + zoom * (middle[0] + scale * (this.x[at] - (left + right) / 2)),
      y + zoom * (middle[1] - scale * (this.y[at] - (low + high) / 2)),
    ];
  }

  draw() {
    const canvas = this.part("canvas"), ratio = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !height) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const place = (this.place = this.spread(width, height));
    const { codes, values } = this.found.columns[this.column];
    const radius = this.x.length > 20000 ? 1.2 : this.x.length > 2000 ? 2.2 : 4;
    const order = this.order ?? [];
    for (const at of order) {
      const [x, y] = place(at);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      const dim = this.only !== null && codes[at] !== this.only;
      pen.globalAlpha = dim ? 0.12 : 0.85;
      pen.fillStyle = colourOf(codes[at], values);
      pen.beginPath();
      if (this.found.kinds[at] === "slide") pen.rect(x - radius - 2, y - radius - 2, 2 * radius + 4, 2 * radius + 4);
      else pen.arc(x, y, radius, 0, 2 * Math.PI);
      pen.fill();
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--front");
    for (const at of order) {
      if (!this.found.slides[at].length && at !== this.pointed) continue;
      pen.lineWidth = at === this.pointed ? 2.5 : 1.2;
      pen.beginPath();
      pen.arc(...place(at), radius + (at === this.pointed ? 5 : 2.5), 0, 2 * Math.PI);
      pen.stroke();
    }
    canvas.dataset.drawn = `${this.found.columns[this.column].name}:${order.length}`;
  }

  colour(column) {
    if (column !== this.column) this.only = null; // its code is another's in another column
    this.column = column;
    this.part("columns").value = column;
    const { codes, values } = this.found.columns[column];
    this.order = Array.from(codes.keys()).sort((a, b) => rank(codes[a], values) - rank(codes[b], values) || a - b);
    const counts = new Map();
    for (const code of codes) counts.set(code, (counts.get(code) ?? 0) + 1);
    const rows = [...values.keys(), ...(counts.has(-1) ? [-1] : [])].map((code) => {
      const row = document.createElement("button"), dot = document.createElement("span");
      row.type = "button";
      row.dataset.code = code;
      row.setAttribute("aria-pressed", this.only === code);
      dot.className = "dot";
      dot.style.background = colourOf(code, values);
      row.append(dot, `${code < 0 ? "not known" : values[code]} (${(counts.get(code) ?? 0).toLocaleString()})`);
      return row;
    });
    this.part("legend").replaceChildren(...rows);
    this.draw();
    this.remember();
  }

  nearest(x, y) {
    if (!this.place) return -1;
    let best = -1, least = NEAR_PX ** 2;
    for (let at = 0; at < this.x.length; at++) {
      const [a, b] = this.place(at);
      const square = (a - x) ** 2 + (b - y) ** 2;
      if (square < least) [best, least] = [at, square];
    }
    return best;
  }

  point(at) {
    if (at === this.pointed) return;
    this.pointed = at;
    this.tell();
    this.draw();
  }

  find(name) {
    const wanted = name.toLowerCase();
    this.point(wanted ? this.found.names.findIndex((one) => one.toLowerCase() === wanted) : -1);
  }

  tell() {
    const at = this.pointed, slides = this.found.slides[at] ?? [];
    this.part("open").disabled = !slides.length;
    if (at < 0) return (this.part("told").textContent = "point at a patient");
    const told = this.found.columns.filter(({ codes }) => codes[at] >= 0).map(({ name, values, codes }) => `${name} ${values[codes[at]]}`);
    this.part("told").textContent = `${this.found.names[at]}: ${told.join(", ")}${here(slides.length)}`;
  }

  open(at) {
    if (at < 0) return;
    this.point(at);
    const slides = this.found.slides[at];
    if (slides.length) {
      const turn = this.opened?.at === at ? (this.opened.turn + 1) % slides.length : 0;
      this.opened = { at, turn };
      this.chosen(slides[turn]);
    } else this.part("told").textContent = `${this.found.names[at]}: its maps are not among those that are shown`;
  }
}

function here(slides) {
  if (!slides) return "";
  return slides === 1 ? "; its slide is here" : `; its ${slides} slides are here: each click opens the next`;
}

function rank(code, values) {
  return code < 0 ? -2 : values[code] === "false" ? -1 : 0; // what is rare, and known, lies on top
}

function colourOf(code, values) {
  if (code < 0) return UNKNOWN;
  if (values.every((value) => value === "true" || value === "false")) return values[code] === "true" ? YES : NO;
  return COLOURS[code % COLOURS.length];
}
