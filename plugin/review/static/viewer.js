// Shows a part: image, a good part, as it should be, the deviation map over them; all at one zoom and pan.
"use strict";

(() => {
  const { say, tell } = window.flawline;
  const STOPS = [[255, 214, 10], [255, 140, 0], [232, 17, 35], [190, 0, 120]]; // half the limit ... twice the limit
  const BLINK_MS = 450; // slower than three flashes a second, which some people cannot bear
  const MOST = 40; // device pixels for a pixel of the picture

  const byId = (id) => document.getElementById(id);
  const slider = byId("opacity");
  const buttons = Object.fromEntries(
    ["boxes", "base", "golden", "blink", "side", "pixels", "fit"].map((id) => [id, byId(id)]));
  const viewers = [];
  const shown = { base: "image", compare: false, blink: false, side: false };

  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    if (exponent === 0) {
      return sign * fraction * 2 ** -24;
    }
    if (exponent === 31) {
      return fraction ? NaN : sign * Infinity;
    }
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  function floats(buffer, dtype) {
    if (dtype === "float32") {
      return new Float32Array(buffer);
    }
    return Float32Array.from(new Uint16Array(buffer), half);
  }

  // x is the value as a share of the limit: nothing shows under a half, full strength from the limit on.
  function colour(x) {
    const at = Math.min(1, Math.max(0, (x - 0.5) / 1.5)) * (STOPS.length - 1);
    const low = Math.min(STOPS.length - 2, Math.floor(at));
    const share = at - low;
    const rise = Math.min(1, Math.max(0, (x - 0.5) / 0.5));
    const alpha = 235 * rise * rise * (3 - 2 * rise);
    return [0, 1, 2].map((i) => STOPS[low][i] + share * (STOPS[low + 1][i] - STOPS[low][i])).concat(alpha);
  }

  function paint(values, width, height, limit) {
    const picture = new ImageData(width, height);
    for (let i = 0; i < width * height; i += 1) {
      picture.data.set(colour(Number.isNaN(values[i]) ? 0 : values[i] / limit), 4 * i);
    }
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(picture, 0, 0);
    return canvas;
  }

  async function loadMap(map, threshold) {
    const answer = await fetch(map.url);
    if (!answer.ok) {
      throw new Error(say("map_unread"));
    }
    const values = floats(await answer.arrayBuffer(), map.dtype);
    const [height, width] = map.shape.slice(-2);
    if (!(width > 0 && height > 0) || values.length !== width * height) {
      throw new Error(say("map_shape"));
    }
    const peak = values.reduce((a, b) => (b > a ? b : a), -Infinity);
    return { canvas: paint(values, width, height, threshold > 0 ? threshold : peak || 1), peak, width, height };
  }

  async function loadPicture(entry) {
    const image = new Image();
    image.src = entry.url;
    await image.decode();
    return image;
  }

  const identity = [1, 0, 0, 0, 1, 0];

  class Viewer {
    constructor(figure) {
      this.view = JSON.parse(figure.dataset.view);
      this.holder = figure.querySelector(".panes");
      this.status = figure.querySelector("[data-status]");
      this.panes = [this.holder.firstElementChild];
      this.pictures = {};
      this.place = null; // {scale, x, y}: device pixels for a pixel of the part, where its corner lies
      this.fitted = true;
      new ResizeObserver(() => this.resized()).observe(this.holder);
      this.listen();
    }

    async load() {
      const problems = [];
      const wanted = { ...this.view.pictures, ...(this.view.golden ? { golden: this.view.golden } : {}) };
      const jobs = Object.entries(wanted).map(async ([role, entry]) => {
        try {
          this.pictures[role] = { image: await loadPicture(entry), toPart: entry.toPart || identity };
          this.changed(); // the picture stands there at once, whatever is still on its way
        } catch {
          problems.push(say("unshown", { what: say(role) }));
        }
      });
      if (this.view.map) {
        jobs.push(loadMap(this.view.map, this.view.threshold).then(
          (map) => { this.map = { ...map, toPart: this.view.map.toPart }; },
          (error) => { problems.push(error.message); },
        ));
      }
      await Promise.all(jobs);
      const words = this.map ? [say("map_top", { n: this.map.peak.toPrecision(3) })] : [say("no_map")];
      if (this.view.threshold) {
        words.push(say("limit", { n: this.view.threshold.toPrecision(3) }));
      }
      this.status.textContent = words.concat(problems).join(" · ");
      this.arrange();
      this.changed();
      this.panes[0].firstElementChild.dataset.ready = "yes";
      return this;
    }

    // The part's own extent, in its pixels.
    extent() {
      const picture = this.pictures.image || this.pictures.thumbnail || this.pictures.reconstruction;
      if (picture) {
        const [a, , c, , e, f] = picture.toPart;
        return [a * picture.image.naturalWidth + c, e * picture.image.naturalHeight + f];
      }
      return this.map ? [this.map.width, this.map.height] : null;
    }

    // Which panes stand there: one, or image, good part, map and as it should be beside each other.
    arrange() {
      const kinds = shown.side
        ? ["image", ...(this.pictures.golden ? ["golden"] : []), ...(this.map ? ["map"] : []),
          ...(this.pictures.reconstruction ? ["reconstruction"] : [])]
        : ["one"];
      while (this.panes.length > kinds.length) {
        this.panes.pop().remove();
      }
      while (this.panes.length < kinds.length) {
        const pane = this.panes[0].cloneNode(true);
        this.holder.append(pane);
        this.panes.push(pane);
      }
      this.panes.forEach((pane, i) => {
        pane.dataset.kind = kinds[i];
        pane.lastElementChild.textContent = kinds.length > 1 ? say(kinds[i]) : "";
      });
      this.holder.dataset.count = String(kinds.length);
      this.resized();
    }

    resized() {
      for (const pane of this.panes) {
        const canvas = pane.firstElementChild;
        const ratio = window.devicePixelRatio || 1;
        canvas.width = Math.max(1, Math.round(pane.clientWidth * ratio));
        canvas.height = Math.max(1, Math.round(pane.clientHeight * ratio));
      }
      if (this.fitted) {
        this.place = null;
      }
      this.changed();
    }

    fit() {
      const extent = this.extent();
      const canvas = this.panes[0].firstElementChild;
      if (!extent) {
        return;
      }
      const scale = Math.min(canvas.width / extent[0], canvas.height / extent[1]);
      this.fitted = true;
      this.place = {
        scale,
        x: (canvas.width - scale * extent[0]) / 2,
        y: (canvas.height - scale * extent[1]) / 2,
      };
    }

    // Device pixels of a pane's canvas that a picture's pixel takes at the part's own size.
    trueScale() {
      const picture = this.pictures.image || this.pictures.thumbnail;
      return picture ? 1 / picture.toPart[0] : 1;
    }

    zoomTo(scale, x = null, y = null) {
      const canvas = this.panes[0].firstElementChild;
      const at = [x ?? canvas.width / 2, y ?? canvas.height / 2];
      const least = Math.min(canvas.width, canvas.height) / Math.max(...(this.extent() || [1, 1])) / 4;
      const next = Math.min(MOST, Math.max(least, scale));
      const share = next / this.place.scale;
      this.fitted = false;
      this.place = {
        scale: next,
        x: Math.round(at[0] - share * (at[0] - this.place.x)),
        y: Math.round(at[1] - share * (at[1] - this.place.y)),
      };
      this.changed();
    }

    pan(x, y) {
      this.fitted = false;
      this.place = { ...this.place, x: this.place.x + x, y: this.place.y + y };
      this.changed();
    }

    listen() {
      const ratio = () => window.devicePixelRatio || 1;
      const touching = new Map();
      const at = (event) => {
        const box = event.target.getBoundingClientRect();
        return [(event.clientX - box.left) * ratio(), (event.clientY - box.top) * ratio()];
      };
      this.holder.addEventListener("wheel", (event) => {
        if (this.place && event.target.matches("canvas")) {
          event.preventDefault();
          this.zoomTo(this.place.scale * 1.0015 ** -event.deltaY, ...at(event));
        }
      }, { passive: false });
      this.holder.addEventListener("pointerdown", (event) => {
        if (this.place && event.target.matches("canvas")) {
          event.target.setPointerCapture(event.pointerId);
          touching.set(event.pointerId, at(event));
        }
      });
      this.holder.addEventListener("pointermove", (event) => {
        const before = touching.get(event.pointerId);
        if (!before) {
          return;
        }
        const now = at(event);
        touching.set(event.pointerId, now);
        const other = [...touching].find(([id]) => id !== event.pointerId)?.[1];
        if (other) {
          const far = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
          const share = far(now, other) / Math.max(1, far(before, other));
          this.zoomTo(this.place.scale * share, (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
        } else {
          this.pan(now[0] - before[0], now[1] - before[1]);
        }
      });
      for (const kind of ["pointerup", "pointercancel"]) {
        this.holder.addEventListener(kind, (event) => touching.delete(event.pointerId));
      }
      this.holder.addEventListener("dblclick", (event) => {
        if (this.place && event.target.matches("canvas")) {
          togglePixels(this, ...at(event));
        }
      });
    }

    changed() {
      if (!this.place) {
        this.fit();
      }
      if (this.place) {
        this.panes.forEach((pane) => this.draw(pane));
      }
    }

    draw(pane) {
      const canvas = pane.firstElementChild;
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, canvas.width, canvas.height);
      canvas.dataset.place = JSON.stringify([this.place.scale, this.place.x, this.place.y]);
      const kind = pane.dataset.kind || "one";
      const base = kind === "one" ? this.based() : kind === "map" ? "image" : kind;
      canvas.dataset.shows = base;
      const picture = this.pictures[base] || this.pictures.image || this.pictures.thumbnail;
      if (picture) {
        this.lay(context, picture.toPart);
        const scale = this.place.scale * picture.toPart[0];
        context.imageSmoothingEnabled = scale < 3; // beyond, the picture's own pixels are what is to be seen
        context.imageSmoothingQuality = "high";
        context.drawImage(picture.image, 0, 0);
      }
      if (this.map && (kind === "map" || kind === "one") && !(kind === "one" && base === "golden")) {
        const [width, height] = this.extent();
        this.lay(context, this.map.toPart || [width / this.map.width, 0, 0, 0, height / this.map.height, 0]);
        context.imageSmoothingEnabled = true;
        context.globalAlpha = slider.valueAsNumber / 100;
        context.drawImage(this.map.canvas, 0, 0);
        context.globalAlpha = 1;
      }
      if (buttons.boxes.getAttribute("aria-pressed") === "true") {
        this.drawBoxes(context);
      }
    }

    based() {
      const other = shown.base === "image" ? compared() : shown.base;
      const base = shown.compare ? (shown.base === "image" ? other : "image") : shown.base;
      return this.pictures[base] ? base : "image";
    }

    lay(context, [a, b, c, d, e, f]) {
      const { scale, x, y } = this.place;
      context.setTransform(a * scale, d * scale, b * scale, e * scale, c * scale + x, f * scale + y);
    }

    drawBoxes(context) {
      this.lay(context, identity);
      for (const region of this.view.regions) {
        const [x, y, width, height] = region.box_px;
        for (const [line, style] of [[5, "rgba(0, 0, 0, 0.65)"], [2, "#fff"]]) {
          context.lineWidth = line / this.place.scale;
          context.strokeStyle = style;
          context.strokeRect(x, y, width, height);
        }
      }
    }
  }

  // What the image is compared with: a good part where there is one, else the part as it should be.
  const has = (role) => viewers.some((viewer) => viewer.pictures[role]);
  const compared = () => (has("golden") ? "golden" : "reconstruction");

  function keep(name, value) {
    try {
      localStorage.setItem(name, value);
    } catch {
      // Private windows keep nothing; the setting then holds for this page.
    }
  }

  function kept(name, fallback) {
    try {
      return localStorage.getItem(name) ?? fallback;
    } catch {
      return fallback;
    }
  }

  const redraw = () => viewers.forEach((viewer) => viewer.changed());
  const press = (button, pressed) => button.setAttribute("aria-pressed", String(pressed));
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";

  function showBase(base) {
    shown.base = shown.base === base ? "image" : base;
    shown.compare = false;
    stopBlinking();
    press(buttons.golden, shown.base === "golden");
    press(buttons.base, shown.base === "reconstruction");
    redraw();
  }

  let blinking = 0;
  function stopBlinking() {
    clearInterval(blinking);
    blinking = 0;
    press(buttons.blink, false);
  }

  function toggleBlink() {
    if (blinking) {
      stopBlinking();
      shown.compare = false;
    } else if (has("golden") || has("reconstruction")) {
      press(buttons.blink, true);
      blinking = setInterval(() => { shown.compare = !shown.compare; redraw(); }, BLINK_MS);
      shown.compare = true;
    } else {
      tell(say("nothing_to_compare"));
    }
    redraw();
  }

  function togglePixels(only = null, x = null, y = null) {
    const on = !pressed(buttons.pixels);
    press(buttons.pixels, on);
    for (const viewer of only ? [only] : viewers) {
      if (!viewer.place) {
        continue;
      }
      if (on) {
        viewer.zoomTo(viewer.trueScale(), x, y);
      } else {
        viewer.place = null;
        viewer.fitted = true;
        viewer.changed();
      }
    }
  }

  function fitAll() {
    press(buttons.pixels, false);
    for (const viewer of viewers) {
      viewer.place = null;
      viewer.fitted = true;
    }
    redraw();
  }

  function setOpacity(value) {
    slider.value = String(value);
    keep("map-opacity", slider.value);
    redraw();
  }

  let opacityBefore = 60;
  const views = {
    map: () => {
      const now = slider.valueAsNumber;
      opacityBefore = now || opacityBefore;
      setOpacity(now ? 0 : opacityBefore);
    },
    opacity: ({ by }) => setOpacity(slider.valueAsNumber + by),
    zoom: ({ by }) => viewers.forEach((viewer) => viewer.place && viewer.zoomTo(viewer.place.scale * by)),
    pan: ({ by }) => viewers.forEach((viewer) => viewer.place && viewer.pan(-60 * by[0], -60 * by[1])),
    compare: ({ on }) => {
      if (!blinking && shown.compare !== on && (has("golden") || has("reconstruction"))) {
        shown.compare = on;
        redraw();
      }
    },
  };

  function drawLegend() {
    const canvas = byId("legend");
    const context = canvas.getContext("2d");
    for (let x = 0; x < canvas.width; x += 1) {
      const [r, g, b, alpha] = colour(0.5 + (1.5 * x) / canvas.width);
      context.fillStyle = `rgba(${r}, ${g}, ${b}, ${alpha / 255})`;
      context.fillRect(x, 0, 1, canvas.height);
    }
  }

  if (slider) {
    slider.value = kept("map-opacity", "60");
    // Boxes start hidden: an inspector looks first and is told afterwards.
    press(buttons.boxes, kept("boxes", "false") === "true");
    shown.side = kept("side", "false") === "true";
    press(buttons.side, shown.side);
    slider.addEventListener("input", () => { keep("map-opacity", slider.value); redraw(); });
    buttons.boxes.addEventListener("click", () => {
      press(buttons.boxes, !pressed(buttons.boxes));
      keep("boxes", String(pressed(buttons.boxes)));
      redraw();
    });
    buttons.side.addEventListener("click", () => {
      shown.side = !shown.side;
      press(buttons.side, shown.side);
      keep("side", String(shown.side));
      viewers.forEach((viewer) => viewer.arrange());
    });
    buttons.base.addEventListener("click", () => showBase("reconstruction"));
    buttons.golden.addEventListener("click", () => showBase("golden"));
    buttons.blink.addEventListener("click", toggleBlink);
    buttons.pixels.addEventListener("click", () => togglePixels());
    buttons.fit.addEventListener("click", fitAll);
    document.addEventListener("view", ({ detail }) => views[detail.name]?.(detail));
    drawLegend();
    for (const figure of document.querySelectorAll(".viewer")) {
      viewers.push(new Viewer(figure));
    }
    const offers = (role) => viewers.some(({ view }) => view.pictures[role] || (role === "golden" && view.golden));
    buttons.base.hidden = !offers("reconstruction");
    buttons.golden.hidden = !offers("golden");
    buttons.blink.hidden = !offers("reconstruction") && !offers("golden");
    Promise.all(viewers.map((viewer) => viewer.load())).then(() => document.dispatchEvent(new Event("pictures")));
  }
})();
