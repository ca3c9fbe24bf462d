// Draws a part's picture with its deviation map over it. The map comes as raw floats and is coloured here.
"use strict";

(() => {
  const SHORTEST_LONG_SIDE = 900; // canvas pixels: small parts are enlarged so that boxes stay crisp
  const LONGEST_SIDE = 2400;
  const STOPS = [[255, 214, 10], [255, 140, 0], [232, 17, 35], [190, 0, 120]]; // half the limit ... twice the limit

  const slider = document.getElementById("opacity");
  const boxes = document.getElementById("boxes");
  const base = document.getElementById("base");
  const viewers = [];

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
      throw new Error("the map cannot be read");
    }
    const values = floats(await answer.arrayBuffer(), map.dtype);
    const [height, width] = map.shape.slice(-2);
    if (!(width > 0 && height > 0) || values.length !== width * height) {
      throw new Error("the map's shape does not fit");
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
      this.canvas = figure.querySelector("canvas");
      this.status = figure.querySelector("[data-status]");
      this.pictures = {};
    }

    async load() {
      const problems = [];
      const jobs = Object.entries(this.view.pictures).map(async ([role, entry]) => {
        try {
          this.pictures[role] = { image: await loadPicture(entry), toPart: entry.toPart || identity };
        } catch {
          problems.push(`the ${role} cannot be shown`);
        }
      });
      if (this.view.map) {
        jobs.push(loadMap(this.view.map, this.view.threshold).then(
          (map) => { this.map = { ...map, toPart: this.view.map.toPart }; },
          (error) => { problems.push(error.message); },
        ));
      }
      await Promise.all(jobs);
      this.measure();
      const words = this.map ? [`map peak ${this.map.peak.toPrecision(3)}`] : ["no map"];
      if (this.view.threshold) {
        words.push(`limit ${this.view.threshold.toPrecision(3)}`);
      }
      this.status.textContent = words.concat(problems).join(" · ");
      this.draw();
      this.canvas.dataset.ready = "yes";
    }

    // The canvas shows the cut-out part; picture and map are laid onto it by their transforms.
    measure() {
      const picture = this.pictures.image || this.pictures.thumbnail || this.pictures.reconstruction;
      const source = picture
        ? { width: picture.image.naturalWidth, height: picture.image.naturalHeight, toPart: picture.toPart }
        : this.map;
      if (!source) {
        this.size = [1, 1, 1];
        return;
      }
      const [a, b, c, d, e, f] = source.toPart || identity;
      const width = Math.max(1, a * source.width + b * source.height + c);
      const height = Math.max(1, d * source.width + e * source.height + f);
      const longest = Math.max(width, height);
      const scale = Math.min(LONGEST_SIDE / longest, Math.max(1, SHORTEST_LONG_SIDE / longest));
      this.size = [width, height, scale];
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      if (this.map && !this.map.toPart) {
        this.map.toPart = [width / this.map.width, 0, 0, 0, height / this.map.height, 0];
      }
    }

    place(context, [a, b, c, d, e, f]) {
      const scale = this.size[2];
      context.setTransform(a * scale, d * scale, b * scale, e * scale, c * scale, f * scale);
    }

    draw() {
      const context = this.canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, this.canvas.width, this.canvas.height);
      context.imageSmoothingQuality = "high";
      const wanted = base.getAttribute("aria-pressed") === "true" ? "reconstruction" : "image";
      const picture = this.pictures[wanted] || this.pictures.image || this.pictures.thumbnail;
      if (picture) {
        this.place(context, picture.toPart);
        context.drawImage(picture.image, 0, 0);
      }
      if (this.map) {
        this.place(context, this.map.toPart);
        context.globalAlpha = slider.valueAsNumber / 100;
        context.drawImage(this.map.canvas, 0, 0);
        context.globalAlpha = 1;
      }
      if (boxes.getAttribute("aria-pressed") === "true") {
        this.drawBoxes(context);
      }
    }

    drawBoxes(context) {
      this.place(context, identity);
      for (const region of this.view.regions) {
        const [x, y, width, height] = region.box_px;
        for (const [line, style] of [[5, "rgba(0, 0, 0, 0.65)"], [2, "#fff"]]) {
          context.lineWidth = line / this.size[2];
          context.strokeStyle = style;
          context.strokeRect(x, y, width, height);
        }
      }
    }
  }

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

  const redraw = () => viewers.forEach((viewer) => viewer.draw());

  function toggle(button, changed) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(pressed));
      changed(pressed);
      redraw();
    });
  }

  function drawLegend() {
    const canvas = document.getElementById("legend");
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
    boxes.setAttribute("aria-pressed", kept("boxes", "false"));
    base.setAttribute("aria-pressed", "false");
    slider.addEventListener("input", () => { keep("map-opacity", slider.value); redraw(); });
    toggle(boxes, (pressed) => keep("boxes", String(pressed)));
    toggle(base, () => undefined);
    drawLegend();
    for (const figure of document.querySelectorAll(".viewer")) {
      viewers.push(new Viewer(figure));
    }
    base.hidden = !viewers.some((viewer) => viewer.view.pictures.reconstruction);
    viewers.forEach((viewer) => viewer.load());
  }
})();
