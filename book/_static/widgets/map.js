/* The plane of two latents with the test set on it. */
(() => {
  "use strict";
  const book = window.vaeBook;
  const EDGE = 5; // all means of the test set lie within
  const PRIOR = Math.sqrt(-2 * Math.log(0.05)); // the circle that holds 95 % of N(0, I)
  const data = book.data["two-decoder"];
  const means = Float32Array.from(book.numbers(data.means, Int16Array), (n) => n / data.places);
  const labels = book.bytes(data.labels);

  /* Where the digits gather: its name is set at the mean of each, so that colour is not alone. */
  const middles = Array.from({ length: 10 }, (_, digit) => {
    const sums = [0, 0, 0];
    labels.forEach((label, k) => {
      if (label !== digit) return;
      sums[0] += means[2 * k];
      sums[1] += means[2 * k + 1];
      sums[2] += 1;
    });
    return [sums[0] / sums[2], sums[1] / sums[2]];
  });
  // Those that would cover one another give way.
  for (let round = 0; round < 50; round++) {
    middles.forEach((a, i) => middles.slice(0, i).forEach((b) => {
      const [x, y] = [a[0] - b[0], a[1] - b[1]];
      const lack = 0.55 - Math.hypot(x, y);
      if (lack <= 0) return;
      const share = lack / 2 / Math.hypot(x, y);
      [a, b].forEach((end, k) => {
        end[0] += (k ? -share : share) * x;
        end[1] += (k ? -share : share) * y;
      });
    }));
  }

  /* The digits of the `count` images whose means lie nearest, most frequent first: [digit, times]. */
  function nearest([x, y], count = 15) {
    const far = Float32Array.from(labels, (_, k) => (means[2 * k] - x) ** 2 + (means[2 * k + 1] - y) ** 2);
    const border = far.slice().sort()[count - 1];
    const times = new Array(10).fill(0);
    far.forEach((d, k) => { if (d <= border) times[labels[k]] += 1; });
    return times.map((n, digit) => [digit, n]).filter(([, n]) => n).sort((a, b) => b[1] - a[1]);
  }

  /* A canvas with the test set; `over(pen, place, colours)` draws on top. */
  function map(attributes, over) {
    let background, drawnFor;
    const backdrop = (width, colour, place) => {
      const dense = devicePixelRatio || 1;
      const key = `${width} ${dense} ${colour("ground")}`;
      if (key === drawnFor) return background;
      drawnFor = key;
      background = document.createElement("canvas");
      background.width = background.height = Math.round(width * dense);
      const pen = background.getContext("2d");
      pen.scale(dense, dense);
      pen.fillStyle = colour("ground");
      pen.fillRect(0, 0, width, width);
      const size = width > 300 ? 1.8 : 1.4;
      labels.forEach((label, k) => {
        pen.fillStyle = colour(`digit-${label}`);
        pen.fillRect(...place([means[2 * k], means[2 * k + 1]]).map((c) => c - size / 2), size, size);
      });
      for (const [called, line, dash] of [["ground", 3.5, []], ["ink", 1.5, [2, 4]]]) {
        pen.strokeStyle = colour(called);
        pen.lineWidth = line;
        pen.setLineDash(dash);
        pen.beginPath();
        pen.arc(width / 2, width / 2, (PRIOR / EDGE) * (width / 2), 0, 7);
        pen.stroke();
      }
      pen.font = "bold 14px sans-serif";
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.lineWidth = 4;
      pen.setLineDash([]);
      pen.strokeStyle = colour("ground");
      middles.forEach((middle, digit) => {
        pen.fillStyle = colour("ink");
        pen.strokeText(digit, ...place(middle));
        pen.fillText(digit, ...place(middle));
      });
      return background;
    };
    return book.drawing(attributes, (pen, width, height, colour) => {
      const place = ([x, y]) => [(width / 2) * (1 + x / EDGE), (height / 2) * (1 - y / EDGE)];
      const ground = Object.fromEntries(
        ["ground", "ink", ...middles.map((_, k) => `digit-${k}`)].map((key) => [key, colour(key)]));
      pen.drawImage(backdrop(width, (key) => ground[key], place), 0, 0, width, height);
      over(pen, place, colour, width / 2 / EDGE);
    });
  }

  const scale = () => ({ left: -EDGE, right: EDGE, bottom: -EDGE, top: EDGE });
  Object.assign(book, { map, nearest, mapScale: scale, mapEdge: EDGE });
})();
