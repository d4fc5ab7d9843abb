"use strict";
// The latent explorer: one state z, and views that follow it. `window.explorer` is what the browser tests ask.

(async () => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const $ = (id) => document.getElementById(id);
  const root = $("explorer"), D = data.latent_dim, [channels, high, wide] = data.image_shape, pixels = channels * high * wide;
  if (typeof DecompressionStream === "undefined") {
    $("explorer-state").textContent = "This browser is too old to unpack the model: it has no DecompressionStream.";
    return;
  }
  const [model, prior, images, means] = await Promise.all([
    loadModel(data), unpack(data.prior), data.images && unpack(data.images), data.means && unpack(data.means),
  ]);
  const count = images ? images.length / pixels : 0;
  const row = (table, i) => table.slice(i * D, (i + 1) * D);
  const pixelsOf = (i) => Float32Array.from(images.subarray(i * pixels, (i + 1) * pixels), (v) => v / 255);
  const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
  const checked = (name) => root.querySelector(`input[name=${name}]:checked`).value;
  function encoded(x) {
    const q = model.encode(x);
    return checked("z-mode") === "mean" ? q.mean : q.mean.map((mu, i) => mu + q.sigma[i] * normal());
  }
  const order = Array.from({ length: D }, (_, i) => i).sort((a, b) => data.use[b] - data.use[a]);
  const number = (v) => v.toFixed(2).replace("-", "−").replace("−0.00", "0.00");

  // ---- pictures

  // (C, H, W) in [0, 1]; one pixel of the canvas is one of the image, and CSS enlarges it
  function paint(canvas, x) {
    canvas.width = wide;
    canvas.height = high;
    const picture = new ImageData(wide, high), area = high * wide;
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = Math.round(255 * x[(channels < 3 ? 0 : c) * area + i]);
      picture.data[4 * i + 3] = 255;
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  // ---- the state

  const state = { z: Float32Array.from(images ? row(means, 0) : row(prior, 0)), a: null, b: null, drawn: new Float32Array(pixels), drawnZ: null };
  let asked = false;
  function refresh() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; show(); });
  }
  function setZ(z) {
    state.z = Float32Array.from(z);
    refresh();
  }
  function show() {
    paint($("decoded"), model.decode(state.z, checked("x-mode")));
    $("redraw").disabled = checked("x-mode") === "mean";
    for (const latent of order) showSlider(latent);
    if (images) showNearest();
    drawPlane();
  }

  // ---- the nearest test image, by its posterior mean

  function nearest(z) {
    let best = 0, least = Infinity;
    for (let i = 0; i < count; i++) {
      let far = 0;
      for (let d = 0; d < D; d++) far += (means[i * D + d] - z[d]) ** 2;
      if (far < least) [best, least] = [i, far];
    }
    return [best, Math.sqrt(least)];
  }
  const labelOf = (i) => (data.labels ? `, class ${data.classes[data.labels[i]]}` : "");
  function showNearest() {
    const [i, far] = nearest(state.z);
    paint($("nearest"), pixelsOf(i));
    $("nearest-text").textContent = `test image ${i}${labelOf(i)}, distance ${number(far)}`;
  }

  // ---- sliders

  const sliders = new Map();
  for (const latent of order) {
    const label = document.createElement("label"), input = document.createElement("input"), value = document.createElement("output");
    const name = document.createElement("span");
    name.textContent = `z${latent}`;
    const note = document.createElement("small");
    note.textContent = `${data.use[latent].toFixed(2)} ${data.unit}${data.active[latent] ? "" : ", inactive"}`;
    Object.assign(input, { type: "range", id: `z-${latent}`, min: data.low[latent], max: data.high[latent], step: "any" });
    input.addEventListener("input", () => {
      state.z[latent] = input.valueAsNumber;
      refresh();
    });
    label.append(name, input, value, note);
    label.classList.toggle("inactive", !data.active[latent]);
    $("sliders").append(label);
    sliders.set(latent, [input, value]);
  }
  function showSlider(latent) {
    const [input, value] = sliders.get(latent), z = state.z[latent];
    if (Math.abs(input.valueAsNumber - z) > 1e-6) input.value = z;
    value.textContent = number(z);
  }

  // ---- the plane

  const plane = $("plane"), axes = [$("axis-x"), $("axis-y")];
  axes.forEach((axis, place) => {
    for (const latent of order) axis.add(new Option(`z${latent}`, latent));
    axis.value = order[Math.min(place, D - 1)];
    axis.addEventListener("change", () => { points = null; refresh(); });
  });
  const across = () => +axes[0].value, up = () => +axes[1].value;
  const colour = (label) => (data.colours ? data.colours[label] : getComputedStyle(root).getPropertyValue(`--class-${label}`));
  let points = null;
  const frame = { left: 34, right: 8, top: 8, bottom: 26 };
  const size = () => [plane.clientWidth, plane.clientHeight];
  const span = (latent) => {
    const room = 0.05 * (data.high[latent] - data.low[latent]);
    return [data.low[latent] - room, data.high[latent] + room];
  };
  function toScreen(zx, zy) {
    const [w, h] = size(), [x0, x1] = span(across()), [y0, y1] = span(up());
    return [
      frame.left + ((zx - x0) / (x1 - x0)) * (w - frame.left - frame.right),
      h - frame.bottom - ((zy - y0) / (y1 - y0)) * (h - frame.top - frame.bottom),
    ];
  }
  function toLatent(px, py) {
    const [w, h] = size(), [x0, x1] = span(across()), [y0, y1] = span(up());
    return [
      clamp(x0 + ((px - frame.left) / (w - frame.left - frame.right)) * (x1 - x0), x0, x1),
      clamp(y0 + ((h - frame.bottom - py) / (h - frame.top - frame.bottom)) * (y1 - y0), y0, y1),
    ];
  }
  const ink = () => getComputedStyle(root).color;

  // what does not move with z is drawn once for each pair of axes
  function background() {
    const [w, h] = size(), scale = window.devicePixelRatio || 1;
    if (points && points.width === Math.round(w * scale) && points.ink === ink()) return points;
    points = Object.assign(document.createElement("canvas"), { width: Math.round(w * scale), height: Math.round(h * scale), ink: ink() });
    const c = points.getContext("2d");
    c.scale(scale, scale);
    drawAxes(c, w, h);
    const colours = data.classes.map((_, label) => colour(label));
    for (let i = 0; i < count; i++) {
      const [x, y] = toScreen(means[i * D + across()], means[i * D + up()]);
      c.fillStyle = data.labels ? colours[data.labels[i]] : ink();
      c.globalAlpha = 0.55;
      c.fillRect(x - 1.5, y - 1.5, 3, 3);
    }
    c.globalAlpha = 1;
    if (data.labels) drawLabels(c);
    return points;
  }
  function drawAxes(c, w, h) {
    c.fillStyle = c.strokeStyle = ink();
    c.font = "12px system-ui, sans-serif";
    c.globalAlpha = 0.8;
    c.strokeRect(frame.left, frame.top, w - frame.left - frame.right, h - frame.top - frame.bottom);
    for (const [axis, latent] of [["x", across()], ["y", up()]])
      for (let tick = Math.ceil(span(latent)[0]); tick <= span(latent)[1]; tick++) {
        const [x, y] = axis === "x" ? toScreen(tick, 0) : toScreen(0, tick);
        c.textAlign = axis === "x" ? "center" : "right";
        c.fillText(String(tick).replace("-", "−"), axis === "x" ? x : frame.left - 4, axis === "x" ? h - frame.bottom + 15 : y + 4);
      }
    c.textAlign = "right";
    c.fillText(`z${across()}`, w - frame.right, h - 2);
    c.textAlign = "left";
    c.fillText(`z${up()}`, 2, frame.top + 10);
    c.globalAlpha = 1;
  }
  // each class's name at its middle, so that no one depends on telling colours apart
  function drawLabels(c) {
    const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];
    c.font = "bold 15px system-ui, sans-serif";
    c.textAlign = "center";
    c.lineWidth = 3;
    c.strokeStyle = getComputedStyle(plane).backgroundColor;
    for (const label of new Set(data.labels)) {
      const members = Array.from({ length: count }, (_, i) => i).filter((i) => data.labels[i] === label);
      const [x, y] = toScreen(...[across(), up()].map((latent) => middle(members.map((i) => means[i * D + latent]))));
      c.strokeText(data.classes[label], x, y + 5);
      c.fillStyle = ink();
      c.fillText(data.classes[label], x, y + 5);
    }
  }
  function drawPlane() {
    const [w, h] = size(), scale = window.devicePixelRatio || 1, still = background(), c = plane.getContext("2d");
    if (plane.width !== still.width || plane.height !== still.height) Object.assign(plane, { width: still.width, height: still.height });
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, plane.width, plane.height);
    c.drawImage(still, 0, 0);
    c.scale(scale, scale);
    c.strokeStyle = c.fillStyle = ink();
    const [a, b] = [state.a, state.b].map((z) => toScreen(z[across()], z[up()]));
    c.setLineDash([4, 4]);
    c.lineWidth = 1.5;
    c.beginPath();
    c.moveTo(...a);
    c.lineTo(...b);
    c.stroke();
    c.setLineDash([]);
    c.font = "bold 13px system-ui, sans-serif";
    c.textAlign = "center";
    c.fillText("A", a[0], a[1] - 6);
    c.fillText("B", b[0], b[1] - 6);
    const [x, y] = toScreen(state.z[across()], state.z[up()]);
    c.lineWidth = 2;
    for (const [radius, style] of [[8, getComputedStyle(plane).backgroundColor], [7, ink()]]) {
      c.strokeStyle = style;
      c.beginPath();
      c.arc(x, y, radius, 0, 2 * Math.PI);
      c.moveTo(x - 12, y);
      c.lineTo(x + 12, y);
      c.moveTo(x, y - 12);
      c.lineTo(x, y + 12);
      c.stroke();
    }
  }
  function dragged(element, move) {
    let down = false;
    element.addEventListener("pointerdown", (event) => {
      down = true;
      element.setPointerCapture(event.pointerId);
      move(event, true);
    });
    element.addEventListener("pointermove", (event) => down && move(event, false));
    for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => { down = false; });
  }
  dragged(plane, (event) => {
    const [zx, zy] = toLatent(event.offsetX, event.offsetY);
    state.z[across()] = zx;
    state.z[up()] = zy;
    refresh();
  });
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  plane.addEventListener("keydown", (event) => {
    if (!ARROWS[event.key]) return;
    event.preventDefault();
    const [dx, dy] = ARROWS[event.key];
    for (const [latent, by] of [[across(), dx], [up(), dy]]) {
      const [low, high] = span(latent);
      state.z[latent] = clamp(state.z[latent] + (by * (high - low)) / (event.shiftKey ? 20 : 100), low, high);
    }
    refresh();
  });

  // ---- drawing

  const drawing = $("drawing"), pen = { x: wide / 2, y: high / 2, down: false };
  const seen = () => (data.binary ? state.drawn.map((v) => +(v > 0.5)) : state.drawn);
  // a round, soft brush, as wide as MNIST's strokes
  function brush(x, y) {
    const radius = Math.max(1.1, Math.min(high, wide) / 20);
    for (let r = 0; r < high; r++)
      for (let c = 0; c < wide; c++) {
        const value = clamp(radius + 0.5 - Math.hypot(c + 0.5 - x, r + 0.5 - y), 0, 1);
        for (let k = 0; k < channels; k++) {
          const at = (k * high + r) * wide + c;
          state.drawn[at] = Math.max(state.drawn[at], value);
        }
      }
  }
  function stroke(x, y, starts) {
    const steps = starts ? 1 : Math.max(1, Math.ceil(2 * Math.hypot(x - pen.x, y - pen.y)));
    const from = starts ? [x, y] : [pen.x, pen.y];
    for (let i = 1; i <= steps; i++) brush(from[0] + ((x - from[0]) * i) / steps, from[1] + ((y - from[1]) * i) / steps);
    Object.assign(pen, { x, y });
    encodeDrawing();
  }
  function encodeDrawing() {
    state.drawnZ = encoded(seen());
    setZ(state.drawnZ);
    showDrawing();
  }
  function showDrawing() {
    paint(drawing, seen());
    paint($("reconstructed"), state.drawnZ ? model.decode(state.drawnZ, checked("x-mode")) : state.drawn);
    if (document.activeElement !== drawing || !drawing.matches(":focus-visible")) return;
    const c = drawing.getContext("2d"), x = Math.floor(pen.x), y = Math.floor(pen.y);
    c.fillStyle = pen.down ? "#d55e00" : "#56b4e9";
    c.fillRect(x, y, 1, 1);
  }
  dragged(drawing, (event, starts) => stroke((event.offsetX / drawing.clientWidth) * wide, (event.offsetY / drawing.clientHeight) * high, starts));
  drawing.addEventListener("keydown", (event) => {
    if (event.key === " ") pen.down = !pen.down;
    else if (ARROWS[event.key]) {
      pen.x = clamp(pen.x + ARROWS[event.key][0], 0.5, wide - 0.5);
      pen.y = clamp(pen.y - ARROWS[event.key][1], 0.5, high - 0.5);
    } else return;
    event.preventDefault();
    if (pen.down) stroke(pen.x, pen.y, true);
    else showDrawing();
  });
  for (const change of ["focus", "blur"]) drawing.addEventListener(change, showDrawing);
  $("clear").addEventListener("click", () => {
    state.drawn.fill(0);
    state.drawnZ = null;
    showDrawing();
  });
  // MNIST's images have their centre of mass in the middle
  $("centre").addEventListener("click", () => {
    let mass = 0, x = 0, y = 0;
    for (let r = 0; r < high; r++)
      for (let c = 0; c < wide; c++) {
        const v = state.drawn[r * wide + c];
        mass += v;
        x += v * c;
        y += v * r;
      }
    if (!mass) return;
    const dx = Math.round((wide - 1) / 2 - x / mass), dy = Math.round((high - 1) / 2 - y / mass), old = state.drawn.slice();
    state.drawn.fill(0);
    for (let k = 0; k < channels; k++)
      for (let r = Math.max(0, dy); r < Math.min(high, high + dy); r++)
        for (let c = Math.max(0, dx); c < Math.min(wide, wide + dx); c++)
          state.drawn[(k * high + r) * wide + c] = old[(k * high + r - dy) * wide + c - dx];
    encodeDrawing();
  });

  // ---- between two images

  const strip = $("strip"), between = $("between"), STEPS_BETWEEN = 9;
  const thumbnails = Array.from({ length: STEPS_BETWEEN }, () => strip.appendChild(document.createElement("canvas")));
  thumbnails.forEach((canvas) => canvas.setAttribute("aria-hidden", "true"));
  const mixed = (t) => state.a.map((v, i) => (1 - t) * v + t * state.b[i]);
  function showStrip() {
    thumbnails.forEach((canvas, i) => paint(canvas, model.decode(mixed(i / (STEPS_BETWEEN - 1)))));
    refresh();
  }
  between.addEventListener("input", () => setZ(mixed(between.valueAsNumber)));
  dragged(strip, (event) => {
    const box = strip.getBoundingClientRect();
    between.value = clamp((event.clientX - box.left) / box.width, 0, 1);
    setZ(mixed(between.valueAsNumber));
  });
  $("set-a").addEventListener("click", () => { state.a = state.z.slice(); showStrip(); });
  $("set-b").addEventListener("click", () => { state.b = state.z.slice(); showStrip(); });

  // ---- the other buttons

  $("from-prior").addEventListener("click", () => setZ(row(prior, Math.floor((Math.random() * prior.length) / D))));
  $("from-nearest").addEventListener("click", () => {
    setZ(encoded(pixelsOf(nearest(state.z)[0])));
  });
  $("redraw").addEventListener("click", refresh);
  root.querySelectorAll("input[name=x-mode]").forEach((input) => input.addEventListener("change", () => { refresh(); showDrawing(); }));
  root.querySelectorAll("input[name=z-mode]").forEach((input) => input.addEventListener("change", () => state.drawnZ && encodeDrawing()));
  new ResizeObserver(refresh).observe(plane);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);

  // ---- the first picture

  if (!images) root.querySelectorAll(".images-only").forEach((element) => element.remove());
  if (data.labels) $("plane-labels").textContent = ", coloured by class, with the name of each class at its middle";
  const table = images ? means : prior, rows = table.length / D;
  let other = Math.min(1, rows - 1);
  if (images && data.labels) other = Math.max(0, data.labels.findIndex((label) => label !== data.labels[0]));
  [state.a, state.b] = [row(table, 0), row(table, other)];
  root.querySelector(".panes").hidden = false;
  $("explorer-state").hidden = true;
  showDrawing();
  showStrip();
  show();
  root.setAttribute("aria-busy", "false");
  performance.mark("explorer");
  window.explorer = { state, model, nearest, seen, show };
})();
