/* Draw a digit: where the encoder puts it, what comes back, and what the ELBO says of it. */
vaeBook.make.draw = (body) => {
  "use strict";
  const book = vaeBook;
  const { element, fixed } = book;
  const parts = book.data["two-encoder"];
  const encoder = Object.fromEntries(["trunk", "mean", "log_std"].map((k) => [k, book.network(parts[k])]));
  const decoder = book.network(book.data["two-decoder"].decoder);
  const PEN = 0.085; // the width of the pen, as a part of the sheet
  const state = { strokes: [], pixels: null, found: null };

  const sheet = book.drawing({ class: "vae-sheet", role: "img", "aria-label": "A sheet to draw on with mouse or finger; the list below puts examples on it" }, (pen, width) => {
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, width, width);
    if (state.strokes.length) trace(pen, (x) => x * width, (y) => y * width, PEN * width);
    else if (state.pixels) {
      pen.imageSmoothingEnabled = false;
      pen.drawImage(given, 0, 0, width, width);
    } else {
      pen.fillStyle = "#595959";
      pen.font = "16px sans-serif";
      pen.textAlign = "center";
      pen.fillText("draw a digit here", width / 2, width / 2);
    }
  });

  function trace(pen, across, down, width) {
    Object.assign(pen, { lineWidth: width, lineCap: "round", lineJoin: "round", strokeStyle: "#000" });
    for (const stroke of state.strokes) {
      pen.beginPath();
      stroke.forEach(([x, y], k) => pen[k ? "lineTo" : "moveTo"](across(x), down(y)));
      if (stroke.length === 1) pen.lineTo(across(stroke[0][0]) + 0.01, down(stroke[0][1]));
      pen.stroke();
    }
  }

  /* As MNIST's were: scaled so that the longer side is 20 pixels, and moved so that the middle of
     its mass stands in the middle of 28 x 28. Then ink is what covers half a pixel or more. */
  const small = document.createElement("canvas");
  small.width = small.height = 28;
  const fine = small.getContext("2d", { willReadFrequently: true });
  function normalised() {
    const points = state.strokes.flat();
    const [left, right] = [0, 1].map((k) => Math[k ? "max" : "min"](...points.map((p) => p[0])) + (k - 0.5) * PEN);
    const [top, bottom] = [0, 1].map((k) => Math[k ? "max" : "min"](...points.map((p) => p[1])) + (k - 0.5) * PEN);
    const scale = 20 / Math.max(right - left, bottom - top);
    const grey = (x, y) => {
      fine.clearRect(0, 0, 28, 28);
      trace(fine, (px) => (px - left) * scale + x, (py) => (py - top) * scale + y, PEN * scale);
      const { data } = fine.getImageData(0, 0, 28, 28);
      return Float32Array.from({ length: 784 }, (_, k) => data[4 * k + 3] / 255);
    };
    const cornered = grey(4, 4);
    const mass = [0, 0, 0];
    cornered.forEach((ink, k) => {
      mass[0] += ink * ((k % 28) + 0.5);
      mass[1] += ink * (Math.floor(k / 28) + 0.5);
      mass[2] += ink;
    });
    const [x, y] = [0, 1].map((k) => 4 + Math.round(14 - mass[k] / mass[2]));
    return grey(x, y).map((ink) => (ink >= 0.5 ? 1 : 0));
  }

  const map = book.map({ class: "vae-map", role: "img", "aria-label": "The plane of two latents, with the ellipse of the encoder's answer" }, (pen, place, colour, unit) => {
    if (!state.found) return;
    const { mean, std } = state.found.q;
    const [x, y] = place(mean);
    pen.strokeStyle = colour("ink");
    pen.lineWidth = 1;
    pen.setLineDash([3, 3]);
    pen.beginPath();
    [[0, y, 1e4, y], [x, 0, x, 1e4]].forEach(([a, b, c, d]) => { pen.moveTo(a, b); pen.lineTo(c, d); });
    pen.stroke();
    pen.setLineDash([]);
    pen.lineWidth = 2;
    for (const [times, called] of [[2, "ground"], [1, "wrong"]]) {
      pen.beginPath();
      pen.ellipse(x, y, Math.max(1, times * std[0] * unit), Math.max(1, times * std[1] * unit), 0, 0, 7);
      pen.fillStyle = colour(called);
      pen.fill();
      pen.stroke();
    }
  });
  const given = book.digit("What the encoder sees");
  const back = book.digit("What comes back, the mean");
  const figure = (picture, words) => element("figure", { class: "vae-small" }, picture, element("figcaption", {}, words));
  const cells = Object.fromEntries(["distortion", "rate", "elbo"].map((k) => [k, element("td")]));
  const row = (words, cell) => element("tr", {}, element("th", { scope: "row" }, words), cell);
  const table = element("table", { class: "vae-terms" },
    element("caption", {}, "nats"),
    element("tbody", {}, row("distortion", cells.distortion), row("rate", cells.rate), row("ELBO = −distortion − rate", cells.elbo)));
  const said = book.spoken();

  function show(finished = true) {
    sheet.scene();
    if (state.strokes.length) state.pixels = normalised();
    if (!state.pixels) return;
    given.show(state.pixels);
    const q = book.encode(encoder, state.pixels);
    back.show(book.seen(book.run(decoder, q.mean), "mean"));
    state.found = finished ? book.elbo(encoder, decoder, state.pixels) : { q };
    map.scene();
    for (const [key, cell] of Object.entries(cells)) cell.textContent = finished ? fixed(state.found[key], 1) : "…";
    if (!finished) return;
    const { rate, distortion, elbo } = state.found;
    said.say(() => `The encoder answers with mean (${fixed(q.mean[0])}, ${fixed(q.mean[1])}) and standard deviations (${fixed(q.std[0])}, ${fixed(q.std[1])}). Distortion ${fixed(distortion, 1)}, rate ${fixed(rate, 1)}, ELBO ${fixed(elbo, 1)} nats; the average of held-out images is ${fixed(parts.elbo, 1)}.`);
  }
  function clear() {
    Object.assign(state, { strokes: [], pixels: null, found: null });
    [given, back].forEach((picture) => picture.show(new Float32Array(784)));
    Object.values(cells).forEach((cell) => { cell.textContent = "…"; });
    said.say(() => "The sheet is empty.");
    map.scene();
    sheet.scene();
  }
  function example(digit) {
    clear();
    from.querySelector("select").value = digit;
    state.pixels = book.unpacked(book.data.digits.bits[digit]);
    show();
  }

  sheet.style.touchAction = "none";
  const at = (event) => {
    const box = sheet.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  sheet.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    sheet.setPointerCapture(event.pointerId);
    if (!state.strokes.length) clear();
    state.strokes.push([at(event)]);
    show(false);
    event.preventDefault();
  });
  sheet.addEventListener("pointermove", (event) => {
    if (!sheet.hasPointerCapture(event.pointerId)) return;
    state.strokes.at(-1).push(at(event));
    show(false);
  });
  for (const ended of ["pointerup", "pointercancel"]) sheet.addEventListener(ended, () => { if (state.strokes.length) show(); });

  const from = book.select("an example: a held-out", [..."0123456789"], example);
  const put = book.button("put it there", () => example(Number(from.querySelector("select").value)));
  const controls = element("div", { class: "vae-row" }, book.button("clear", clear), from, put);
  const pictures = element("div", { class: "vae-row vae-pictures" }, figure(given, "what the encoder sees"), figure(back, "what comes back"));
  body.append(
    element("div", { class: "vae-panes" }, element("div", { class: "vae-side" }, sheet, controls), map, pictures, table),
    said,
    book.hint("What you draw is scaled until its longer side is 20 pixels, and centred by its mass on 28 × 28, as the pictures of MNIST were. Then each pixel that is at least half covered becomes ink, as in the training. The ellipses hold one and two standard deviations of the encoder’s answer. What comes back is decoded from its mean; the distortion is an average over the whole of it.", sheet),
  );
  example(7);
  return { state, show, clear, example };
};
