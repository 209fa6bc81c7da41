// Draws the scenes that the kernel sends, on one 2-D canvas a view, and sends clicks, drags and receipts back.
//
// kernel -> page: {kind: "frame", seq, scene} with one binary buffer an array, {kind: "pong"}
// page -> kernel: hello, ack {seq}, ping, click {panel, x, y}, drag {panel, x0, y0, x1, y1}, pause_ms {ms},
//                 draw {panel, xy: [x, y, x, y, ...]}: a line drawn freehand in a panel with `draw`
// The canvas is an image to assistive technology: scene.words (what is drawn, made by the kernel) is its label.
// For tests the root element carries data-seq (last frame drawn), data-status, and `element.deffi`:
// {seq, scene: {panels: [{name, layers: [{kind, ...arrays}]}]}, boxes: [panel areas in CSS pixels], pause_ms: []}.

const FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
const INK = "#222222", SOFT = "#666666", RULE = "#d9d9d9";
const MOST = 4000;                                // points of a line drawn freehand
const WORDS_MS = 3000;                            // the label changes at most this often
const PING_MS = 2000, SILENCE_MS = 7000, NARROW = 620;
const LOST_TEXT = "kernel gone: re-run the cell (a long-running cell looks the same: wait for it)";
const TYPES = { f4: Float32Array, u1: Uint8Array, i4: Int32Array };

// ---- frames ---------------------------------------------------------------------------------------------------
// An array in the scene is {buffer: i, type, shape}; what comes out has a typed array and its shape in its place.
function decode(scene, buffers) {
  const array = (a) => {
    const b = buffers[a.buffer], bytes = b.buffer ? new Uint8Array(b.buffer, b.byteOffset, b.byteLength)
      : new Uint8Array(b);
    const own = bytes.slice().buffer;            // aligned: a typed array cannot begin at any byte
    return Object.assign(new TYPES[a.type](own), { shape: a.shape });
  };
  for (const panel of scene.panels)
    for (const layer of panel.layers)
      for (const [k, v] of Object.entries(layer)) if (v && v.buffer !== undefined) layer[k] = array(v);
  return scene;
}

// ---- axes -----------------------------------------------------------------------------------------------------
function niceTicks(lo, hi, most) {
  const raw = (hi - lo) / Math.max(most, 1), ten = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= raw * 0.999);
  const out = [];
  for (let k = Math.ceil(lo / step - 1e-6); k * step <= hi + step * 1e-6; k++) out.push(k * step);
  const digits = Math.min(Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), 12);
  const big = Math.max(Math.abs(lo), Math.abs(hi));
  const text = (v) => (v !== 0 && (big >= 1e6 || big < 1e-4)) ? v.toExponential(1) : v.toFixed(digits);
  return out.map((v) => [v, text(v)]);
}

function logTicks(lo, hi, most) {
  const a = Math.ceil(Math.log10(lo) - 1e-9), b = Math.floor(Math.log10(hi) + 1e-9);
  const text = (v) => (v >= 1e5 || v < 1e-3) ? v.toExponential(0).replace("e+", "e") : String(Number(v.toPrecision(1)));
  const all = [];
  const parts = b - a + 1 >= 3 ? [1] : b - a + 1 >= 2 ? [1, 3] : [1, 2, 5];
  for (let e = a - 1; e <= b; e++)
    for (const m of parts) { const v = m * 10 ** e; if (v >= lo * 0.999 && v <= hi * 1.001) all.push(v); }
  const skip = Math.ceil(all.length / Math.max(most, 1)) || 1;
  return all.filter((_, i) => i % skip === 0).map((v) => [v, text(v)]);
}

// The map from data to pixels of a panel, and back.
function projection(panel, box) {
  let [x0, x1] = panel.xlim, [y0, y1] = panel.ylim;
  const f = panel.xlog ? Math.log10 : (v) => v, g = panel.xlog ? (v) => 10 ** v : (v) => v;
  let { x, y, w, h } = box;
  x0 = f(x0); x1 = f(x1);
  if (panel.equal || !panel.axes) {              // one unit is as long on both axes: shrink the box, from its corner
    const unit = Math.min(w / (x1 - x0), h / (y1 - y0));
    const w1 = unit * (x1 - x0), h1 = unit * (y1 - y0);
    w = w1; h = h1;
  }
  const sx = w / (x1 - x0), sy = h / (y1 - y0);
  return { x, y, w, h, sx, sy, px: (v) => x + (f(v) - x0) * sx, py: (v) => y + h - (v - y0) * sy,
    dx: (p) => g(x0 + (p - x) / sx), dy: (p) => y0 + (y + h - p) / sy };
}

// ---- layers ---------------------------------------------------------------------------------------------------
const classColor = (palette, c) => (c === 255 ? palette.grey : palette.colors[c % palette.colors.length]);

// Indices of the elements of a layer by the colour they are drawn with: one fillStyle a colour is what makes it fast.
function byColor(layer, n, palette) {
  if (layer.color || !layer.label) return [[layer.color || "#444444", null]];
  const groups = new Map();
  for (let i = 0; i < n; i++) {
    const c = layer.label[i];
    if (!groups.has(c)) groups.set(c, []);
    groups.get(c).push(i);
  }
  return [...groups].map(([c, list]) => [classColor(palette, c), list]);
}

function eachOf(list, n, fn) {
  if (list) for (const i of list) fn(i); else for (let i = 0; i < n; i++) fn(i);
}

const DRAW = {
  points(ctx, la, p, palette) {
    const n = la.xy.length / 2, s = la.size, r = s / 2;
    ctx.globalAlpha = la.alpha;
    for (const [color, list] of byColor(la, n, palette)) {
      ctx.fillStyle = ctx.strokeStyle = color;
      if (la.mark === "o" && s <= 3.5) {
        eachOf(list, n, (i) => ctx.fillRect(p.px(la.xy[2 * i]) - r, p.py(la.xy[2 * i + 1]) - r, s, s));
        continue;
      }
      ctx.lineWidth = la.mark === "x" ? 1.8 : 1.5;
      ctx.beginPath();
      eachOf(list, n, (i) => {
        const x = p.px(la.xy[2 * i]), y = p.py(la.xy[2 * i + 1]);
        if (la.mark === "x") { ctx.moveTo(x - r, y - r); ctx.lineTo(x + r, y + r); ctx.moveTo(x - r, y + r); ctx.lineTo(x + r, y - r); }
        else { ctx.moveTo(x + r, y); ctx.arc(x, y, r, 0, 7); }
      });
      la.mark === "o" ? ctx.fill() : ctx.stroke();
    }
  },
  paths(ctx, la, p, palette) {
    const n = la.offsets.length - 1;
    ctx.lineWidth = la.width; ctx.lineJoin = ctx.lineCap = "round";
    for (const [color, list] of byColor(la, n, palette)) {
      ctx.strokeStyle = ctx.fillStyle = color;
      ctx.beginPath();
      eachOf(list, n, (i) => {
        for (let j = la.offsets[i]; j < la.offsets[i + 1]; j++)
          ctx[j === la.offsets[i] ? "moveTo" : "lineTo"](p.px(la.xy[2 * j]), p.py(la.xy[2 * j + 1]));
      });
      ctx.stroke();
      if (la.arrow) eachOf(list, n, (i) => arrowHead(ctx, la, p, la.offsets[i], la.offsets[i + 1]));
    }
  },
  field(ctx, la, p) {
    ctx.strokeStyle = ctx.fillStyle = la.color; ctx.lineWidth = la.width;
    for (let i = 0; i < la.xy.length / 2; i++) {
      const x = la.xy[2 * i], y = la.xy[2 * i + 1];
      const a = [p.px(x), p.py(y)], b = [p.px(x + la.uv[2 * i]), p.py(y + la.uv[2 * i + 1])];
      ctx.beginPath(); ctx.moveTo(...a); ctx.lineTo(...b); ctx.stroke();
      head(ctx, a, b, Math.min(4, 0.3 * Math.hypot(b[0] - a[0], b[1] - a[1])));
    }
  },
  image(ctx, la, p) { bitmap(ctx, p, la.extent, la.pixels, la.alpha); },
  map(ctx, la, p) { bitmap(ctx, p, la.extent, la.pixels, 1); },
  curves(ctx, la, p) {
    const line = (ys, back) => {
      const n = la.x.length;
      for (let k = 0; k < n; k++) { const i = back ? n - 1 - k : k; ctx.lineTo(p.px(la.x[i]), p.py(ys[i])); }
    };
    ctx.fillStyle = ctx.strokeStyle = la.color;
    if (la.low) { ctx.globalAlpha = 0.18; ctx.beginPath(); line(la.low, false); line(la.high, true); ctx.fill(); }
    ctx.globalAlpha = 1; ctx.lineWidth = la.width; ctx.lineJoin = "round";
    ctx.beginPath(); line(la.y, false); ctx.stroke();
    if (la.marks || la.x.length === 1) for (let i = 0; i < la.x.length; i++) {
      ctx.beginPath(); ctx.arc(p.px(la.x[i]), p.py(la.y[i]), 2.5, 0, 7); ctx.fill();
    }
  },
  line(ctx, la, p) {
    const flat = la.axis === "y", at = flat ? p.py(la.at) : p.px(la.at);
    ctx.strokeStyle = ctx.fillStyle = la.color; ctx.lineWidth = 1; ctx.setLineDash([4, 3]);
    ctx.beginPath();
    if (flat) { ctx.moveTo(p.x, at); ctx.lineTo(p.x + p.w, at); } else { ctx.moveTo(at, p.y); ctx.lineTo(at, p.y + p.h); }
    ctx.stroke(); ctx.setLineDash([]);
    ctx.font = `11px ${FONT}`;
    const wide = ctx.measureText(la.text).width;
    const left = flat ? p.x + p.w - wide - 4 : Math.min(at + 4, p.x + p.w - wide - 2);
    words(ctx, la.text, left, flat ? Math.max(at - 5, p.y + 11) : p.y + 11, la.color);
  },
  text(ctx, la, p) {
    ctx.font = `600 ${la.size}px ${FONT}`; ctx.textAlign = "center"; ctx.textBaseline = "middle";
    words(ctx, la.text, p.px(la.x), p.py(la.y), la.color);
    ctx.textAlign = "left"; ctx.textBaseline = "alphabetic";
  },
};

function words(ctx, text, x, y, color) {         // with a white halo: readable on any data
  ctx.lineWidth = 3; ctx.lineJoin = "round"; ctx.strokeStyle = "rgba(255,255,255,.9)"; ctx.strokeText(text, x, y);
  ctx.fillStyle = color; ctx.fillText(text, x, y);
}

function head(ctx, a, b, size) {
  const d = Math.hypot(b[0] - a[0], b[1] - a[1]);
  if (d < 0.5) return;
  const ux = (b[0] - a[0]) / d, uy = (b[1] - a[1]) / d;
  ctx.beginPath(); ctx.moveTo(b[0] + ux, b[1] + uy);
  ctx.lineTo(b[0] - ux * size * 1.6 - uy * size, b[1] - uy * size * 1.6 + ux * size);
  ctx.lineTo(b[0] - ux * size * 1.6 + uy * size, b[1] - uy * size * 1.6 - ux * size);
  ctx.fill();
}

function arrowHead(ctx, la, p, from, to) {
  const at = (j) => [p.px(la.xy[2 * j]), p.py(la.xy[2 * j + 1])];
  if (to - from < 2) return;
  const end = at(to - 1);
  let j = to - 2;                                 // direction from a point at least 6 pixels back
  while (j > from && Math.hypot(at(j)[0] - end[0], at(j)[1] - end[1]) < 6) j--;
  head(ctx, at(j), end, 2 + 1.4 * la.width);
}

// Pixels [h w], [h w 3] or [h w 4] with row 0 at the extent's y1, never smoothed.
function bitmap(ctx, p, extent, pixels, alpha) {
  const [h, w, c = 1] = pixels.shape, off = new OffscreenCanvas(w, h), to = off.getContext("2d");
  const im = to.createImageData(w, h), d = im.data;
  for (let i = 0; i < h * w; i++) {
    for (let k = 0; k < 3; k++) d[4 * i + k] = pixels[i * c + (c < 3 ? 0 : k)];
    d[4 * i + 3] = c === 4 ? pixels[i * c + 3] : 255;
  }
  to.putImageData(im, 0, 0);
  const [x0, x1, y0, y1] = extent;
  ctx.imageSmoothingEnabled = false; ctx.globalAlpha = alpha;
  ctx.drawImage(off, p.px(x0), p.py(y1), p.px(x1) - p.px(x0), p.py(y0) - p.py(y1));
  ctx.globalAlpha = 1;
}

// ---- a panel --------------------------------------------------------------------------------------------------
function fit(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  let n = text.length;
  while (n > 1 && ctx.measureText(text.slice(0, n) + "…").width > width) n--;
  return text.slice(0, n) + "…";
}

function swatch(ctx, kind, color, x, y) {
  ctx.fillStyle = ctx.strokeStyle = color; ctx.lineWidth = 2;
  ctx.beginPath();
  if (kind === "o") { ctx.arc(x + 6, y, 3.5, 0, 7); ctx.fill(); }
  else if (kind === "ring") { ctx.arc(x + 6, y, 4, 0, 7); ctx.stroke(); }
  else if (kind === "x") { ctx.moveTo(x + 2, y - 4); ctx.lineTo(x + 10, y + 4); ctx.moveTo(x + 2, y + 4); ctx.lineTo(x + 10, y - 4); ctx.stroke(); }
  else if (kind === "map" || kind === "image") ctx.fillRect(x + 1, y - 4, 10, 8);
  else { ctx.moveTo(x, y); ctx.lineTo(x + 12, y); ctx.stroke(); }
}

// The legend stands between title and axes, in as many rows as it takes; returns where it ends.
function legend(ctx, items, x, y, width) {
  ctx.font = `11px ${FONT}`;
  let at = x;
  items.forEach(([name, color, kind], i) => {
    const text = fit(ctx, name, width - 20), w = ctx.measureText(text).width + 28;
    if (i && at + w - 12 > x + width) { at = x; y += 15; }
    swatch(ctx, kind, color, at, y + 7);
    ctx.fillStyle = INK; ctx.fillText(text, at + 16, y + 11);
    at += w;
  });
  return items.length ? y + 19 : y;
}

function drawPanel(ctx, panel, cell, palette) {
  let top = cell.y + 4;
  ctx.textAlign = "left"; ctx.textBaseline = "alphabetic"; ctx.globalAlpha = 1;
  if (panel.title) {
    ctx.font = `600 13px ${FONT}`; ctx.fillStyle = INK;
    ctx.fillText(fit(ctx, panel.title, cell.w - 8), cell.x + 4, top + 12); top += 20;
  }
  top = legend(ctx, panel.legend, cell.x + 4, top, cell.w - 8) + 4;
  const right = cell.x + cell.w - 10, bottom = cell.y + cell.h - 6;
  if (!panel.axes) {
    const p = projection(panel, { x: cell.x + 4, y: top, w: right - cell.x - 4, h: bottom - top });
    return layers(ctx, panel, p, palette);
  }
  const low = bottom - 16 - (panel.xlabel ? 15 : 0);
  ctx.font = `11px ${FONT}`;
  const yt = niceTicks(...panel.ylim, Math.max(2, Math.floor((low - top) / 34)));
  const gutter = Math.max(14, ...yt.map(([, t]) => ctx.measureText(t).width)) + 10 + (panel.ylabel ? 15 : 0);
  const p = projection(panel, { x: cell.x + gutter, y: top, w: right - cell.x - gutter, h: low - top });
  const xt = (panel.xlog ? logTicks : niceTicks)(...panel.xlim, Math.max(2, Math.floor(p.w / 52)));
  layers(ctx, panel, p, palette);
  axes(ctx, panel, p, xt, niceTicks(...panel.ylim, Math.max(2, Math.floor(p.h / 34))), cell);
  return p;
}

function layers(ctx, panel, p, palette) {
  ctx.save();
  ctx.beginPath(); ctx.rect(p.x, p.y, p.w, p.h); ctx.clip();
  for (const la of panel.layers) { ctx.globalAlpha = 1; DRAW[la.kind](ctx, la, p, palette); }
  ctx.restore(); ctx.globalAlpha = 1;
  return p;
}

function axes(ctx, panel, p, xt, yt, cell) {
  ctx.strokeStyle = "#8a8a8a"; ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(p.x - 0.5, p.y); ctx.lineTo(p.x - 0.5, p.y + p.h + 0.5); ctx.lineTo(p.x + p.w, p.y + p.h + 0.5);
  for (const [v] of xt) { const x = Math.round(p.px(v)) - 0.5; ctx.moveTo(x, p.y + p.h); ctx.lineTo(x, p.y + p.h + 4); }
  for (const [v] of yt) { const y = Math.round(p.py(v)) - 0.5; ctx.moveTo(p.x, y); ctx.lineTo(p.x - 4, y); }
  ctx.stroke();
  ctx.font = `11px ${FONT}`; ctx.fillStyle = SOFT;
  ctx.textAlign = "center";
  const clamp = (x, t) => Math.min(x, cell.x + cell.w - 2 - ctx.measureText(t).width / 2);
  for (const [v, t] of xt) ctx.fillText(t, clamp(p.px(v), t), p.y + p.h + 15);
  if (panel.xlabel) ctx.fillText(fit(ctx, panel.xlabel, p.w + 20), p.x + p.w / 2, p.y + p.h + 30);
  ctx.textAlign = "right"; ctx.textBaseline = "middle";
  for (const [v, t] of yt) ctx.fillText(t, p.x - 6, p.py(v));
  ctx.textAlign = "center";
  if (panel.ylabel) {
    ctx.save(); ctx.translate(cell.x + 9, p.y + p.h / 2); ctx.rotate(-Math.PI / 2);
    ctx.fillText(fit(ctx, panel.ylabel, p.h), 0, 0); ctx.restore();
  }
  ctx.textAlign = "left"; ctx.textBaseline = "alphabetic";
}

// ---- the whole picture ----------------------------------------------------------------------------------------
function arrange(scene, width) {
  const [rows, cols, cells] = width < NARROW ? scene.narrow : scene.wide, gap = 10;
  const w = (width - gap) / cols;
  const single = scene.panels.length === 1, h = single ? Math.min(w * 0.8, 480) : Math.min(Math.max(w, 170), cols === 2 ? 400 : 290);
  const head = scene.title ? 30 : 6, foot = scene.note ? 24 : 6;
  const boxes = cells.map(([r, c, hs, ws]) => ({ x: gap + c * w, y: head + r * h, w: ws * w - gap, h: hs * h - 4 }));
  return { boxes, height: Math.ceil(head + rows * h + foot) };
}

function paint(view) {
  const { canvas, scene, mark } = view, width = Math.max(view.root.clientWidth, 240);
  const { boxes, height } = arrange(scene, width), dpr = window.devicePixelRatio || 1;
  const [W, H] = [Math.round(width * dpr), Math.round(height * dpr)];
  if (canvas.width !== W || canvas.height !== H) {
    canvas.width = W; canvas.height = H; canvas.style.width = width + "px"; canvas.style.height = height + "px";
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(dpr, 0, 0, dpr, 0, 0);
  ctx.globalAlpha = 1; ctx.fillStyle = "#ffffff"; ctx.fillRect(0, 0, width, height);
  ctx.textAlign = "left"; ctx.textBaseline = "alphabetic";
  if (scene.title) { ctx.font = `700 15px ${FONT}`; ctx.fillStyle = INK; ctx.fillText(fit(ctx, scene.title, width - 24), 12, 20); }
  if (scene.note) { ctx.font = `11px ${FONT}`; ctx.fillStyle = SOFT; ctx.fillText(fit(ctx, scene.note, width - 24), 12, height - 8); }
  view.projections = scene.panels.map((panel, i) => drawPanel(ctx, panel, boxes[i], scene.palette));
  view.root.deffi.boxes = view.projections.map(({ x, y, w, h }, i) => ({ name: scene.panels[i].name, x, y, w, h }));
  if (mark) (mark.ink ? ink : hint)(ctx, view, mark);
}

function ink(ctx, view, { i, ink: xy }) {        // the line under the pointer, and the chord that will close it
  const p = view.projections[i];
  if (!p || xy.length < 4) return;
  ctx.lineJoin = ctx.lineCap = "round";
  for (const [color, width] of [["#ffffff", 5], ["#d1006c", 2.4]]) {
    ctx.strokeStyle = color; ctx.lineWidth = width; ctx.beginPath();
    for (let k = 0; k < xy.length; k += 2) ctx[k ? "lineTo" : "moveTo"](p.px(xy[k]), p.py(xy[k + 1]));
    ctx.stroke();
  }
  ctx.lineWidth = 1.4; ctx.setLineDash([3, 4]); ctx.beginPath();
  ctx.moveTo(p.px(xy.at(-2)), p.py(xy.at(-1))); ctx.lineTo(p.px(xy[0]), p.py(xy[1])); ctx.stroke(); ctx.setLineDash([]);
}

function hint(ctx, view, { i, from, to }) {      // the rubber line of a drag, the ring of a click
  const p = view.projections[i];
  if (!p) return;
  const a = [p.px(from[0]), p.py(from[1])], b = [p.px(to[0]), p.py(to[1])];
  for (const [color, width] of [["#ffffff", 4], ["#d1006c", 1.8]]) {
    ctx.strokeStyle = color; ctx.lineWidth = width;
    ctx.beginPath(); ctx.moveTo(...a); ctx.lineTo(...b); ctx.stroke();
    ctx.beginPath(); ctx.arc(a[0], a[1], 5, 0, 7); ctx.stroke();
  }
}

// ---- hover: the nearest point of a curve, in words -------------------------------------------------------------
const NEAR = 24;
function nearest(panel, p, x, y) {
  let best = null, least = NEAR;
  for (const la of panel.layers) {
    if (la.kind !== "curves") continue;
    for (let j = 0; j < la.x.length; j++) {
      const px = p.px(la.x[j]), py = p.py(la.y[j]), d = Math.hypot(px - x, py - y);
      if (d < least && px >= p.x - 1 && px <= p.x + p.w + 1 && py >= p.y - 1 && py <= p.y + p.h + 1) { least = d; best = { la, j, px, py }; }
    }
  }
  return best;
}

function reading(panel, { la, j }) {             // "name", "labels 100", "accuracy 0.912 (0.90..0.92)"
  const say = (v) => String(Number(v.toPrecision(4)));
  const band = la.low ? ` (${say(la.low[j])}..${say(la.high[j])})` : "";
  return [la.name, `${panel.xlabel || "x"}: ${say(la.x[j])}`, `${panel.ylabel || "y"}: ${say(la.y[j])}${band}`].filter(Boolean);
}

function hover(view, panel, p, x, y) {
  const { read, dot, root } = view, hit = panel && panel.axes ? nearest(panel, p, x, y) : null;
  read.style.display = dot.style.display = hit ? "block" : "none";
  if (!hit) return;
  read.textContent = reading(panel, hit).join("\n");
  read.style.borderLeftColor = dot.style.borderColor = hit.la.color;
  dot.style.left = hit.px - 7 + "px"; dot.style.top = hit.py - 7 + "px";
  const right = hit.px + 14 + read.offsetWidth <= root.clientWidth, below = hit.py + 10 + read.offsetHeight <= root.clientHeight;
  read.style.left = Math.max(0, right ? hit.px + 14 : hit.px - 14 - read.offsetWidth) + "px";
  read.style.top = Math.max(0, below ? hit.py + 10 : hit.py - 10 - read.offsetHeight) + "px";
}

// ---- pointer --------------------------------------------------------------------------------------------------
function pointer(view, model) {
  const { canvas, tip } = view;
  const where = (e) => {
    const r = canvas.getBoundingClientRect(), x = e.clientX - r.left, y = e.clientY - r.top;
    const i = (view.projections || []).findIndex((p) => x >= p.x && x <= p.x + p.w && y >= p.y && y <= p.y + p.h);
    return { x, y, i };
  };
  const data = (i, x, y) => { const p = view.projections[i]; return [p.dx(Math.min(Math.max(x, p.x), p.x + p.w)), p.dy(Math.min(Math.max(y, p.y), p.y + p.h))]; };
  let down = null;
  const fade = () => {
    view.redraw();
    setTimeout(() => { if (!down) { view.mark = null; view.redraw(); } }, 1500);
  };
  const trace = (e) => {                         // all places since the last event, two pixels apart, at most MOST
    for (const one of [...(e.getCoalescedEvents?.() ?? []), e]) {
      const { x, y } = where(one);
      if (Math.hypot(x - down.last[0], y - down.last[1]) < 2 || down.ink.length >= 2 * MOST) continue;
      down.last = [x, y]; down.ink.push(...data(down.i, x, y));
      down.most = Math.max(down.most, Math.hypot(x - down.x, y - down.y));
    }
    view.mark = { i: down.i, ink: down.ink }; view.redraw();
  };
  canvas.addEventListener("pointerdown", (e) => {
    const { x, y, i } = where(e);
    const panel = i >= 0 && view.scene.panels[i];
    if (!panel || e.button !== 0 || !(panel.click || panel.draw)) return;
    down = { i, x, y, from: data(i, x, y), name: panel.name, ink: panel.draw ? data(i, x, y) : null, last: [x, y], most: 0 };
    canvas.setPointerCapture(e.pointerId); e.preventDefault();
  });
  canvas.addEventListener("pointermove", (e) => {
    const { x, y, i } = where(e);
    if (down && down.ink) trace(e);
    else if (down) { view.mark = { i: down.i, from: down.from, to: data(down.i, x, y) }; view.redraw(); }
    const panel = i >= 0 && view.scene.panels[i];
    hover(view, !down && panel, i >= 0 && view.projections[i], x, y);
    canvas.style.cursor = panel && (panel.click || panel.draw) ? "crosshair" : "default";
    tip.textContent = panel && panel.axes ? data(i, x, y).map((v) => Number(v.toPrecision(3))).join(", ") : "";
  });
  canvas.addEventListener("pointerup", (e) => {
    if (!down) return;
    if (down.ink && (trace(e), down.most > 6)) {
      model.send({ kind: "draw", panel: down.name, xy: down.ink });
      down = null; fade();
      return;
    }
    const { x, y } = where(e), name = down.name, far = !down.ink && Math.hypot(x - down.x, y - down.y) > 6;
    const [x1, y1] = data(down.i, x, y), [x0, y0] = down.from;
    view.mark = { i: down.i, from: down.from, to: far ? [x1, y1] : down.from };
    model.send(far ? { kind: "drag", panel: name, x0, y0, x1, y1 } : { kind: "click", panel: name, x: x0, y: y0 });
    down = null; fade();
  });
  canvas.addEventListener("pointercancel", () => { down = null; view.mark = null; view.redraw(); });
  canvas.addEventListener("pointerleave", () => { tip.textContent = ""; hover(view, null); });
}

// ---- the widget -----------------------------------------------------------------------------------------------
function element(tag, parent, css, className = "") {
  const el = document.createElement(tag);
  el.style.cssText = css; el.className = className; parent.appendChild(el);
  return el;
}

function render({ model, el }) {
  const root = element("div", el, "position:relative;width:100%;background:#fff;border-radius:4px;overflow:hidden;min-height:40px", "deffi-canvas");
  const canvas = element("canvas", root, "display:block;touch-action:none");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "A picture that is not drawn yet");
  const tip = element("div", root, `position:absolute;right:8px;top:4px;font:11px ${FONT};color:${SOFT};pointer-events:none;background:rgba(255,255,255,.85)`);
  const dot = element("div", root, "position:absolute;width:10px;height:10px;border:2px solid;border-radius:50%;pointer-events:none;display:none");
  const read = element("div", root, `position:absolute;padding:4px 8px;font:12px ${FONT};color:${INK};white-space:pre;pointer-events:none;background:rgba(255,255,255,.95);border:1px solid ${RULE};border-left:4px solid;border-radius:3px;box-shadow:0 1px 4px rgba(0,0,0,.2);display:none`, "deffi-read");
  const notice = element("div", root, `position:absolute;left:0;right:0;top:0;padding:6px 12px;font:13px ${FONT};background:#7a1f1f;color:#fff;display:none`);
  notice.textContent = LOST_TEXT;
  const view = { root, canvas, tip, dot, read, scene: null, mark: null, projections: null, frame: null, raf: 0 };
  root.deffi = { seq: 0, scene: null, boxes: [], pause_ms: [] };
  root.dataset.seq = "0";
  let lastMessage = performance.now(), pauseAt = null, lost = false;

  const status = () => { root.dataset.status = lost ? "lost" : model.get("status"); };
  let wordsAt = -Infinity, wordsDue = 0;
  const label = () => { wordsDue = 0; wordsAt = performance.now(); canvas.setAttribute("aria-label", view.scene.words); };
  const relabel = () => { wordsDue ||= setTimeout(label, Math.max(0, wordsAt + WORDS_MS - performance.now())); };
  const draw = () => {
    view.raf = 0;
    const f = view.frame;
    view.frame = null;
    if (f) view.scene = f.scene;
    if (view.scene) paint(view);
    if (!f) return;
    relabel();
    root.deffi.seq = f.seq; root.deffi.scene = f.scene; root.dataset.seq = String(f.seq);
    model.send({ kind: "ack", seq: f.seq });
  };
  view.redraw = () => { if (!view.raf) view.raf = requestAnimationFrame(draw); };

  const onMessage = (msg, buffers) => {
    lastMessage = performance.now();
    if (lost) { lost = false; notice.style.display = "none"; status(); }
    if (msg.kind !== "frame") return;
    view.frame = { seq: msg.seq, scene: decode(structuredClone(msg.scene), buffers) };   // the newest replaces an undrawn one
    view.redraw();
  };
  const onStatus = () => {
    status();
    if (pauseAt !== null && model.get("status") === "paused") {
      const ms = performance.now() - pauseAt;
      pauseAt = null; root.deffi.pause_ms.push(ms); model.send({ kind: "pause_ms", ms });
    }
  };
  const onPause = (e) => {                       // time from the press to "really paused", as the person sees it
    const button = e.target.closest?.(".deffi-pause"), lab = root.closest(".deffi-lab");
    if (button && lab && button.closest(".deffi-lab") === lab && model.get("status") === "running") pauseAt = performance.now();
  };
  const beat = setInterval(() => {
    if (!lost && performance.now() - lastMessage > SILENCE_MS) { lost = true; notice.style.display = "block"; status(); }
    try { model.send({ kind: "ping" }); } catch { lastMessage = -Infinity; }
  }, PING_MS);
  const size = new ResizeObserver(() => view.redraw());

  model.on("msg:custom", onMessage);
  model.on("change:status", onStatus);
  document.addEventListener("pointerdown", onPause, true);
  size.observe(root);
  pointer(view, model);
  status();
  model.send({ kind: "hello" });
  return () => {
    clearInterval(beat); clearTimeout(wordsDue); size.disconnect(); cancelAnimationFrame(view.raf);
    document.removeEventListener("pointerdown", onPause, true);
    model.off("msg:custom", onMessage); model.off("change:status", onStatus);
  };
}

export default { render };
