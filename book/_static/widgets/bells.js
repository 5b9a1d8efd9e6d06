/* The bells: q and the prior, with mu and sigma in the reader's hands, and what that costs. */
vaeBook.make.bells = (body) => {
  "use strict";
  const book = vaeBook;
  const { element, fixed } = book;
  const EDGE = 4;
  const [NARROW, WIDE] = [Math.log(0.05), Math.log(2)];
  const state = { mu: 1, sigma: 0.5 };
  const bell = (x, mu, sigma) => Math.exp(-0.5 * ((x - mu) / sigma) ** 2) / sigma / Math.sqrt(2 * Math.PI);

  /* The divergence from N(0, 1), and the form of the post, which has (log sigma)² for −2 log sigma. */
  const forms = ({ mu, sigma }) => {
    const rest = sigma ** 2 + mu ** 2 - 1;
    return { divergence: 0.5 * (rest - 2 * Math.log(sigma)), post: 0.5 * (rest + Math.log(sigma) ** 2) };
  };

  const chart = book.drawing(
    { class: "vae-chart", role: "application", "aria-roledescription": "point on a plane", "aria-label": "Two bells: across is mu, up is a narrower sigma" },
    (pen, width, height, colour) => {
      const [foot, right] = [height - 22, width - 40];
      const top = 1.1 * Math.max(0.5, bell(0, 0, state.sigma));
      const across = (x) => (right / 2) * (1 + x / EDGE);
      const curve = (mu, sigma, called, dash, fill) => {
        pen.beginPath();
        for (let k = 0; k <= 400; k++) {
          const x = -EDGE + (k / 400) * 2 * EDGE;
          pen.lineTo(across(x), foot * (1 - bell(x, mu, sigma) / top));
        }
        pen.strokeStyle = pen.fillStyle = colour(called);
        pen.lineWidth = 2.5;
        pen.setLineDash(dash);
        pen.stroke();
        pen.globalAlpha = 0.15;
        if (fill) pen.fill();
        pen.globalAlpha = 1;
        pen.setLineDash([]);
      };
      pen.font = "13px sans-serif";
      pen.textAlign = "center";
      pen.fillStyle = pen.strokeStyle = colour("muted");
      pen.lineWidth = 1;
      pen.strokeRect(0.5, -1, right, foot + 1);
      for (let x = -3; x <= 3; x++) pen.fillText(fixed(x, 0), across(x), height - 6);
      pen.textAlign = "left";
      for (const sigma of [2, 1, 0.5, 0.2, 0.1]) pen.fillText(sigma, right + 6, high(sigma, foot) + 4);
      pen.fillText("σ", right + 6, 12);
      curve(0, 1, "line", [6, 4], false);
      curve(state.mu, state.sigma, "right", [], true);
      for (const [line, called] of [[5, "ground"], [2.5, "ink"]]) {
        pen.strokeStyle = colour(called);
        pen.lineWidth = line;
        pen.beginPath();
        pen.arc(across(state.mu), high(state.sigma, foot), 9, 0, 7);
        pen.stroke();
      }
    },
  );
  const high = (sigma, foot) => foot * (0.94 - 0.9 * (WIDE - Math.log(sigma)) / (WIDE - NARROW));
  // In the units of the whole canvas, of which the chart is a part: by its right and lower margins.
  const scale = () => {
    const [width, height] = [chart.clientWidth, chart.clientHeight];
    const part = (height - 22) / height;
    const unit = (WIDE - NARROW) / (0.9 * part);
    const top = NARROW - 0.04 * part * unit;
    return { left: -EDGE, right: EDGE * (2 * width / (width - 40) - 1), top: -top, bottom: -top - unit };
  };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  function move(mu, sigma) {
    state.mu = clamp(mu, -3.5, 3.5);
    state.sigma = clamp(sigma, Math.exp(NARROW), Math.exp(WIDE));
    sliders[0].put(state.mu);
    sliders[1].put(state.sigma);
    show();
  }
  book.movable(chart, {
    at: () => [state.mu, -Math.log(state.sigma)], move: (x, y) => move(x, Math.exp(-y)), scale, step: 0.1,
  });

  const said = book.spoken();
  const cells = { divergence: element("td"), post: element("td"), off: element("td") };
  const row = (words, cell) => element("tr", {}, element("th", { scope: "row" }, words), cell);
  const table = element("table", { class: "vae-terms" },
    element("caption", {}, "nats, one latent"),
    element("tbody", {}, row("the divergence", cells.divergence), row("the post’s form", cells.post), row("it charges too little by", cells.off)));
  function show() {
    chart.scene();
    const { divergence, post } = forms(state);
    cells.divergence.textContent = fixed(divergence);
    cells.post.textContent = fixed(post);
    cells.off.textContent = fixed(divergence - post);
    said.say(() => `With μ = ${fixed(state.mu)} and σ = ${fixed(state.sigma)} the divergence from the prior is ${fixed(divergence)} nats, ${fixed(divergence / Math.LN2)} bits; the post’s form says ${fixed(post)}.`);
  }
  const sliders = [
    book.slider({ label: "μ", min: -3.5, max: 3.5, step: 0.01, value: state.mu, oninput: (mu) => move(mu, state.sigma) }),
    book.slider({ label: "σ", min: 0.05, max: 2, step: 0.01, value: state.sigma, oninput: (sigma) => move(state.mu, sigma) }),
  ];
  const settings = [["the prior", 0, 1], ["where the post’s form is smallest", 0, 0.653], ["a sharp answer", 1, 0.1]];
  const buttons = settings.map(([words, mu, sigma]) => book.button(words, () => move(mu, sigma)));
  const side = element("div", { class: "vae-side" }, ...sliders, table, element("div", { class: "vae-row" }, ...buttons));
  body.append(element("div", { class: "vae-panes" }, chart, side), said,
    book.hint("Blue is q, dashed the prior N(0, 1). Drag the ring, or move it with the arrow keys: sideways moves μ, upwards narrows σ. The heights are rescaled as the bell grows.", chart));
  show();
  return { state, move, forms };
};
