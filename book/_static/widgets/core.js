/* What the widgets share: small networks, a digit on the page, controls, keys, words read aloud. */
(() => {
  "use strict";
  const book = window.vaeBook;

  // ------------------------------------------------------------------ networks

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const numbers = (text, Kind) => new Kind(bytes(text).buffer);

  /* A layer as book/export_weights.py writes it: all bits, or whole numbers and a scale for each row. */
  function layer({ outputs, bias, floats, whole: packed, width, scale }) {
    if (floats) return { outputs, bias: numbers(bias, Float32Array), weights: numbers(floats, Float32Array) };
    const whole = numbers(packed, width === 1 ? Int8Array : Int16Array);
    const scales = numbers(scale, Float32Array);
    const inputs = whole.length / outputs;
    const weights = Float32Array.from(whole, (n, k) => n * scales[Math.floor(k / inputs)]);
    return { outputs, bias: numbers(bias, Float32Array), weights };
  }

  const network = (layers) => layers.map(layer);

  function affine({ outputs, bias, weights }, x) {
    const y = new Float32Array(outputs);
    const inputs = x.length;
    const fours = inputs - (inputs % 4);
    for (let row = 0, at = 0; row < outputs; row++) {
      // Four sums that do not wait for one another.
      let [a, b, c, d] = [bias[row], 0, 0, 0];
      let k = 0;
      for (; k < fours; k += 4, at += 4) {
        a += weights[at] * x[k];
        b += weights[at + 1] * x[k + 1];
        c += weights[at + 2] * x[k + 2];
        d += weights[at + 3] * x[k + 3];
      }
      for (; k < inputs; k++, at++) a += weights[at] * x[k];
      y[row] = a + b + c + d;
    }
    return y;
  }

  /* Affine layers with a tanh between each two; with `last`, after the last one too. */
  function run(layers, given, last = false) {
    let x = Float32Array.from(given);
    layers.forEach((each, k) => {
      x = affine(each, x);
      if (last || k < layers.length - 1) x = x.map(Math.tanh);
    });
    return x;
  }

  const sigmoid = (logit) => 1 / (1 + Math.exp(-logit));

  /* An encoder is {trunk, mean, log_std}; q(z given x) is {mean, std, logStd}. */
  function encode(encoder, x) {
    const features = run(encoder.trunk, x, true);
    const logStd = run(encoder.log_std, features);
    return { mean: run(encoder.mean, features), logStd, std: logStd.map(Math.exp) };
  }

  /* log p(x given z) in nats, of pixels that are 0 or 1. */
  function logProb(logits, x) {
    let sum = 0;
    for (let k = 0; k < logits.length; k++) {
      const l = logits[k];
      sum += x[k] * l - Math.max(l, 0) - Math.log1p(Math.exp(-Math.abs(l)));
    }
    return sum;
  }

  /* KL(q || N(0, I)) in nats. */
  function rate(q) {
    let sum = 0;
    q.mean.forEach((mean, k) => {
      sum += 0.5 * (q.std[k] ** 2 + mean ** 2 - 1) - q.logStd[k];
    });
    return sum;
  }

  // The five points and weights of Gauss and Hermite: an average over N(0, 1) without chance.
  const POINTS = [0, -1.3556261799742659, 1.3556261799742659, -2.8569700138728056, 2.8569700138728056];
  const WEIGHTS = [8 / 15, 0.2220759220056126, 0.2220759220056126, 0.011257411327720689, 0.011257411327720689];

  /* Rate, distortion and ELBO in nats, of a model with two latents. */
  function elbo(encoder, decoder, x) {
    const q = encode(encoder, x);
    let distortion = 0;
    POINTS.forEach((a, i) => POINTS.forEach((b, j) => {
      const z = [q.mean[0] + q.std[0] * a, q.mean[1] + q.std[1] * b];
      distortion -= WEIGHTS[i] * WEIGHTS[j] * logProb(run(decoder, z), x);
    }));
    return { q, rate: rate(q), distortion, elbo: -distortion - rate(q) };
  }

  /* A picture packed eight pixels to a byte. */
  const unpacked = (text) => {
    const packed = bytes(text);
    return Float32Array.from({ length: 784 }, (_, k) => (packed[k >> 3] >> (7 - (k & 7))) & 1);
  };

  /* A draw from N(0, 1), by Box and Muller. */
  const normal = () =>
    Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

  // ------------------------------------------------------------------ words

  let names = 0;
  const name = () => `vae-${++names}`; // an id
  const fixed = (value, digits = 2) => value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }

  /* A line that is read aloud, but only when the numbers have come to rest; `words` makes it then. */
  function spoken() {
    const line = element("p", { class: "vae-said", "aria-live": "polite" });
    let waiting;
    line.say = (words) => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { line.textContent = words(); }, 250);
    };
    return line;
  }

  /* What can be done, for all to read, and read aloud with the canvas that it is about. */
  function hint(text, sheet) {
    const line = element("p", { class: "vae-hint", id: name() }, text);
    if (sheet) sheet.setAttribute("aria-describedby", line.id);
    return line;
  }

  // ------------------------------------------------------------------ controls

  const button = (text, onclick) => element("button", { type: "button", class: "vae-button", onclick }, text);

  /* A slider with its label and its value; `show` puts a number into words. */
  function slider({ label, min, max, step, value, show = fixed, oninput }) {
    const id = name();
    const input = element("input", { type: "range", id, min, max, step, value });
    // Not an <output>: it would be read aloud besides, and so would twenty others.
    const shown = element("span", { class: "vae-value", "aria-hidden": "true" });
    const put = (to) => {
      input.value = to;
      shown.textContent = show(Number(input.value));
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.addEventListener("input", () => {
      put(input.value);
      oninput(Number(input.value));
    });
    put(value);
    const row = element("div", { class: "vae-slider" }, element("label", { for: id }, label), input, shown);
    return Object.assign(row, { put, input });
  }

  /* One of several, as radio buttons. */
  function choice(legend, options, onchange) {
    const group = name();
    const set = element("fieldset", { class: "vae-choice" }, element("legend", {}, legend));
    options.forEach((option, k) => {
      const input = element("input", { type: "radio", name: group, value: option });
      input.checked = k === 0;
      input.addEventListener("change", () => onchange(option));
      set.append(element("label", {}, input, element("span", {}, option)));
    });
    return set;
  }

  function select(label, options, onchange) {
    const id = name();
    const list = element("select", { id }, ...options.map((o, k) => element("option", { value: k }, o)));
    list.addEventListener("change", () => onchange(Number(list.value)));
    return element("div", { class: "vae-select" }, element("label", { for: id }, label), list);
  }

  // ------------------------------------------------------------------ pictures

  /* 28 x 28 pixels, 0 paper and 1 ink: paper is white in the dark theme too. */
  function digit(label) {
    const sheet = element("canvas", { class: "vae-digit", role: "img", width: 28, height: 28, "aria-label": label });
    const pen = sheet.getContext("2d");
    const pixels = pen.createImageData(28, 28);
    pixels.data.fill(255);
    sheet.show = (ink) => {
      for (let k = 0; k < 784; k++) {
        const at = 4 * k;
        pixels.data[at] = pixels.data[at + 1] = pixels.data[at + 2] = 255 * (1 - ink[k]);
      }
      pen.putImageData(pixels, 0, 0);
    };
    return sheet;
  }

  /* What a decoder says of 784 pixels, shown in one of three ways. */
  const VIEWS = ["mean", "sample", "most probable"];
  let tossed = Float32Array.from({ length: 784 }, Math.random);
  const toss = () => { tossed = tossed.map(Math.random); };
  function seen(logits, view) {
    // One toss for each pixel, kept while the latent moves: it is the digit that changes.
    if (view === "sample") return logits.map((l, k) => (tossed[k] < sigmoid(l) ? 1 : 0));
    if (view === "most probable") return logits.map((l) => (l > 0 ? 1 : 0));
    return logits.map(sigmoid);
  }

  /* A canvas as sharp as the screen; draw(pen, width, height, colours) in CSS pixels, again whenever
     its size or the theme changes. `scene()` asks for the next frame. */
  function drawing(attributes, draw) {
    const sheet = element("canvas", attributes);
    let asked = false;
    const frame = () => {
      asked = false;
      const { clientWidth: width, clientHeight: height } = sheet;
      if (!width) return;
      const dense = devicePixelRatio || 1;
      if (sheet.width !== Math.round(width * dense)) sheet.width = Math.round(width * dense);
      if (sheet.height !== Math.round(height * dense)) sheet.height = Math.round(height * dense);
      const pen = sheet.getContext("2d");
      pen.setTransform(dense, 0, 0, dense, 0, 0);
      pen.clearRect(0, 0, width, height);
      draw(pen, width, height, colours(sheet));
    };
    sheet.scene = () => {
      if (!asked) requestAnimationFrame(frame);
      asked = true;
    };
    new ResizeObserver(sheet.scene).observe(sheet);
    const theme = new MutationObserver(sheet.scene);
    theme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    return sheet;
  }

  /* The colours of widgets.css where an element stands. */
  function colours(element) {
    const style = getComputedStyle(element);
    return (called) => style.getPropertyValue(`--vae-${called}`).trim();
  }

  /* Let a point be moved over a canvas by mouse, finger and arrow keys; with Shift in small steps.
     `at()` is the point, `move(x, y, first)` sets it; both in units of `scale()`, which is
     {left, right, bottom, top}. `first` tells the beginning of a drag from what follows, and is
     undefined for keys. `step` is that of a key, or one across and one up. */
  function movable(sheet, { at, move, scale, step }) {
    const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
    const steps = Array.isArray(step) ? step : [step, step];
    const put = (x, y, first) => {
      const { left, right, bottom, top } = scale();
      move(clamp(x, left, right), clamp(y, bottom, top), first);
    };
    const follow = (event, first) => {
      const box = sheet.getBoundingClientRect();
      const { left, right, bottom, top } = scale();
      const across = (event.clientX - box.left) / box.width;
      const down = (event.clientY - box.top) / box.height;
      put(left + across * (right - left), top - down * (top - bottom), first);
    };
    sheet.style.touchAction = "none";
    sheet.tabIndex = 0;
    sheet.addEventListener("pointerdown", (event) => {
      sheet.setPointerCapture(event.pointerId);
      sheet.focus({ focusVisible: false });
      follow(event, true);
      event.preventDefault();
    });
    sheet.addEventListener("pointermove", (event) => {
      if (sheet.hasPointerCapture(event.pointerId)) follow(event, false);
    });
    sheet.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!way || event.ctrlKey || event.altKey || event.metaKey) return;
      const far = event.shiftKey ? 0.2 : 1;
      const [x, y] = at();
      put(x + far * steps[0] * way[0], y + far * steps[1] * way[1]);
      event.preventDefault();
    });
  }

  Object.assign(book, {
    bytes, numbers, network, run, sigmoid, encode, logProb, rate, elbo, unpacked, normal,
    fixed, element, spoken, hint, button, slider, choice, select, digit, VIEWS, toss, seen,
    drawing, movable, name,
  });
})();
