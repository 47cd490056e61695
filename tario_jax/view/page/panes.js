// Panes: each a deep zoom of the H&E, some with a map over it; what one shows, all show.

const UNUSED_KEYS = ["r", "f"]; // of OpenSeadragon: they would turn and mirror one pane
const GRID_LINES = 0.5; // a bin's centre is half a bin from its edges

export class Panes {
  /** element: where they stand; moved(): called when the view changed; pointed(um, pane): the pointer in µm, or null;
   *  drawn(corners): a region in µm; failed(url): a tile did not come. */
  constructor(element, { moved, pointed, drawn, failed }) {
    this.element = element;
    this.moved = moved;
    this.pointed = pointed;
    this.drawn = drawn;
    this.failed = failed;
    this.panes = new Map();
    this.leader = null; // the pane that is moved: what the others do, they do after it
  }

  /** slide: as the server describes it; names: of the panes, in order. */
  show(number, slide, names, labels) {
    const view = this.view();
    for (const pane of this.panes.values()) pane.viewer.destroy();
    this.panes.clear();
    this.leader = null;
    this.element.replaceChildren();
    this.number = number;
    this.slide = slide;
    for (const name of names) this.#add(name, labels[name]);
    if (view && view.number === number) this.look(view);
  }

  #add(name, label) {
    const { slide, number } = this;
    const box = document.createElement("div");
    box.className = "pane";
    box.dataset.pane = name;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", label);
    const title = document.createElement("span");
    title.className = "name";
    title.textContent = label;
    const place = document.createElement("div");
    place.className = "viewer";
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("aria-hidden", "true");
    box.append(place, title, svg);
    this.element.append(box);
    const [width, height] = slide.slide_px;
    const viewer = OpenSeadragon({
      element: place,
      showNavigationControl: false,
      gestureSettingsMouse: { clickToZoom: false },
      animationTime: 0.4,
      maxZoomPixelRatio: 8,
      visibilityRatio: 0.2,
      drawer: "canvas",
      tileSources: {
        width, height, tileSize: slide.tile_px, tileOverlap: 0, minLevel: 8, maxLevel: slide.top_level,
        tileExists: () => slide.he,
        getTileUrl: (level, x, y) => `/api/slides/${number}/tiles/${level}/${x}/${y}.jpg?of=${slide.key}`,
      },
    });
    viewer.canvas.setAttribute("role", "application");
    viewer.canvas.setAttribute("aria-label", `${label}: arrow keys move, plus and minus zoom`);
    viewer.addHandler("canvas-key", (event) => {
      if (UNUSED_KEYS.includes(event.originalEvent.key.toLowerCase())) event.preventDefaultAction = true;
    });
    viewer.addHandler("tile-load-failed", ({ tile }) => this.failed(tile.getUrl()));
    const pane = { name, box, viewer, svg, map: null };
    this.panes.set(name, pane);
    viewer.addHandler("viewport-change", () => this.#follow(pane));
    viewer.addHandler("open", () => { this.#place(pane); this.#outline(); this.#begin(); });
    viewer.addHandler("resize", () => (this.leader ? this.#follow(this.leader) : this.#begin()));
    for (const event of ["animation", "resize", "viewport-change"]) viewer.addHandler(event, () => this.#outline());
    for (const event of ["pointerenter", "pointerdown", "wheel", "keydown", "touchstart"]) {
      place.addEventListener(event, () => (this.leader = pane), { capture: true, passive: true });
    }
    place.addEventListener("pointermove", (event) => this.pointed(this.#um(pane, event), name));
    place.addEventListener("pointerleave", () => this.pointed(null, name));
    this.#drawing(pane);
  }

  /** All look where they should once all are open, or have another size: each would choose a view of its own. */
  #begin() {
    const panes = [...this.panes.values()];
    if (!panes.every((pane) => pane.viewer.world?.getItemCount())) return;
    clearTimeout(this.beginning);
    const view = this.pending ?? this.#viewOf(panes[0]);
    this.beginning = setTimeout(() => this.look(view), 60);
  }

  /** The others look where this one does. */
  #follow(pane) {
    if (pane !== this.leader) return;
    const { viewport } = pane.viewer;
    for (const other of this.panes.values()) {
      if (other === pane || !other.viewer.viewport) continue;
      other.viewer.viewport.zoomTo(viewport.getZoom(), null, true);
      other.viewer.viewport.panTo(viewport.getCenter(), true);
    }
    this.moved();
  }

  /** Middle in µm and zoom, for a link. */
  view() {
    const [pane] = this.panes.values();
    return pane ? this.#viewOf(pane) : null;
  }

  #viewOf(pane) {
    if (!pane.viewer.viewport || !pane.viewer.world?.getItemCount()) return null;
    const { viewport } = pane.viewer;
    const middle = viewport.viewportToImageCoordinates(viewport.getCenter(true));
    const scale = this.slide.he_um_per_px;
    return { number: this.number, x: middle.x * scale, y: middle.y * scale, zoom: viewport.getZoom(true) };
  }

  look({ x, y, zoom }) {
    this.pending = { x, y, zoom };
    const panes = [...this.panes.values()];
    if (!panes.every((pane) => pane.viewer.world?.getItemCount())) return;
    const scale = this.slide.he_um_per_px;
    for (const { viewer: { viewport } } of panes) {
      viewport.zoomTo(zoom, null, true);
      viewport.panTo(viewport.imageToViewportCoordinates(x / scale, y / scale), true);
    }
    this.pending = null;
  }

  /** Corners of what is in view, in µm, within the slide; null where nothing of it is. */
  inView() {
    const [pane] = this.panes.values();
    if (!pane?.viewer.viewport || !pane.viewer.world?.getItemCount()) return null;
    const { viewport } = pane.viewer;
    const { x, y, width, height } = viewport.viewportToImageRectangle(viewport.getBounds(true));
    const [across, down] = this.slide.slide_px;
    const [left, right] = [x, x + width].map((at) => Math.min(Math.max(at, 0), across) * this.slide.he_um_per_px);
    const [top, bottom] = [y, y + height].map((at) => Math.min(Math.max(at, 0), down) * this.slide.he_um_per_px);
    return left < right && top < bottom ? [[left, top], [right, top], [right, bottom], [left, bottom]] : null;
  }

  home() {
    for (const pane of this.panes.values()) pane.viewer.viewport?.goHome(true);
    this.moved();
  }

  /** Puts a picture of bins, or none, over the H&E of a pane: a px a bin, of a grid of bins of bin_um from the slide's corner. */
  map(name, canvas) {
    const pane = this.panes.get(name);
    if (!pane) return;
    if (pane.map) pane.viewer.removeOverlay(pane.map);
    pane.map = null;
    if (!canvas) return;
    canvas.className = "map";
    pane.map = canvas;
    this.#place(pane);
  }

  title(name, text) {
    const pane = this.panes.get(name);
    if (pane) pane.box.querySelector(".name").textContent = text;
  }

  opacity(value) {
    for (const pane of this.panes.values()) if (pane.map) pane.map.style.opacity = value;
  }

  #place(pane) {
    if (!pane.map || !pane.viewer.world.getItemCount()) return;
    const { bin_um, he_um_per_px } = this.slide;
    const side = bin_um / he_um_per_px;
    const where = pane.viewer.viewport.imageToViewportRectangle(0, 0, pane.map.width * side, pane.map.height * side);
    pane.viewer.removeOverlay(pane.map);
    pane.viewer.addOverlay({ element: pane.map, location: where });
  }

  #um(pane, event) {
    const box = pane.box.getBoundingClientRect();
    const point = new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top);
    const at = pane.viewer.viewport?.viewerElementToImageCoordinates(point);
    return at && [at.x * this.slide.he_um_per_px, at.y * this.slide.he_um_per_px];
  }

  // regions

  set selecting(on) {
    this.isSelecting = on;
    for (const pane of this.panes.values()) {
      pane.box.classList.toggle("drawing", on);
      pane.viewer.setMouseNavEnabled(!on);
    }
  }

  /** corners in µm, or null. */
  outline(corners) {
    this.corners = corners;
    this.#outline();
  }

  #outline() {
    for (const pane of this.panes.values()) {
      const view = this.#viewOf(pane);
      if (view) pane.box.dataset.view = `${view.x.toFixed(1)} ${view.y.toFixed(1)} ${view.zoom.toFixed(4)}`;
      const corners = this.corners ?? [];
      let polygon = pane.svg.querySelector("polygon");
      if (!corners.length || !pane.viewer.world.getItemCount()) { polygon?.remove(); continue; }
      if (!polygon) {
        polygon = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
        pane.svg.append(polygon);
      }
      const scale = this.slide.he_um_per_px;
      polygon.setAttribute("points", corners.map(([x, y]) => {
        const at = pane.viewer.viewport.imageToViewerElementCoordinates(new OpenSeadragon.Point(x / scale, y / scale));
        return `${at.x},${at.y}`;
      }).join(" "));
    }
  }

  #drawing(pane) {
    let corners = null;
    pane.svg.addEventListener("pointerdown", (event) => {
      if (!this.isSelecting) return;
      pane.svg.setPointerCapture(event.pointerId);
      corners = [this.#um(pane, event)];
    });
    pane.svg.addEventListener("pointermove", (event) => {
      if (!corners) return;
      corners.push(this.#um(pane, event));
      this.outline(corners);
    });
    pane.svg.addEventListener("pointerup", () => {
      const found = corners;
      corners = null;
      if (found && found.length > 2) this.drawn(found);
    });
  }
}

/** The bin that holds a place, by row and column; undefined where there is none. */
export class Grid {
  constructor(places, bin_um) {
    const number = places.length / 2;
    this.bin_um = bin_um;
    this.number = number;
    this.columns = 0;
    this.rows = 0;
    this.at = new Map();
    this.column = new Int32Array(number);
    this.row = new Int32Array(number);
    for (let i = 0; i < number; i++) {
      const column = Math.round(places[i] / bin_um - GRID_LINES);
      const row = Math.round(places[number + i] / bin_um - GRID_LINES);
      this.column[i] = column;
      this.row[i] = row;
      this.columns = Math.max(this.columns, column + 1);
      this.rows = Math.max(this.rows, row + 1);
      this.at.set(row * 65536 + column, i);
    }
  }

  bin(x_um, y_um) {
    return this.at.get(Math.floor(y_um / this.bin_um) * 65536 + Math.floor(x_um / this.bin_um));
  }

  /** A px a bin, transparent where none is. */
  draw(values, high, colours) {
    const canvas = document.createElement("canvas");
    canvas.width = this.columns;
    canvas.height = this.rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(this.columns, this.rows);
    for (let i = 0; i < this.number; i++) {
      const value = values[i];
      if (Number.isNaN(value)) continue;
      const to = 4 * (this.row[i] * this.columns + this.column[i]);
      const colour = 3 * Math.max(0, Math.min(255, Math.round((255 * (value - high.low)) / (high.high - high.low))));
      image.data[to] = colours[colour];
      image.data[to + 1] = colours[colour + 1];
      image.data[to + 2] = colours[colour + 2];
      image.data[to + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }
}
