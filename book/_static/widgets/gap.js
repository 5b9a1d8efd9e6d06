/* The gap, in the small world of three values of z: q in the reader's hands. */
vaeBook.make.gap = (body) => {
  "use strict";
  const book = vaeBook;
  const { element, fixed } = book;
  const prior = [0.6, 0.3, 0.1];
  const likelihood = [0.1 * 0.2, 0.8 * 0.3, 0.9 * 0.9]; // of both pixels being ink
  const joint = prior.map((p, k) => p * likelihood[k]);
  const evidence = joint.reduce((sum, p) => sum + p);
  const posterior = joint.map((p) => p / evidence);
  const LEAST = 0.005;
  const state = { q: [1 / 3, 1 / 3, 1 / 3], bar: 0 };
  const each = (term) => state.q.reduce((sum, q, k) => sum + q * term(q, k), 0);
  const terms = () => ({
    evidence: Math.log(evidence),
    elbo: each((q, k) => Math.log(joint[k] / q)),
    gap: each((q, k) => Math.log(q / posterior[k])),
  });

  const FOOT = 24;
  const chart = book.drawing(
    { class: "vae-chart", role: "application", "aria-roledescription": "three bars", "aria-label": "q of three values of z" },
    (pen, width, height, colour) => {
      const foot = height - FOOT;
      pen.font = "13px sans-serif";
      pen.textAlign = "center";
      pen.lineWidth = 2.5;
      state.q.forEach((q, k) => {
        const [left, wide] = [(width / 3) * (k + 0.2), width / 5];
        pen.fillStyle = colour("right");
        pen.globalAlpha = k === state.bar ? 0.9 : 0.6;
        pen.fillRect(left, foot * (1 - q), wide, foot * q);
        pen.globalAlpha = 1;
        for (const [p, called, dash] of [[posterior[k], "true", []], [prior[k], "line", [5, 4]]]) {
          pen.strokeStyle = colour(called);
          pen.setLineDash(dash);
          pen.beginPath();
          pen.moveTo(left - 12, foot * (1 - p));
          pen.lineTo(left + wide + 12, foot * (1 - p));
          pen.stroke();
        }
        pen.setLineDash([]);
        pen.fillStyle = colour("ink");
        pen.fillText(`z = ${k + 1}`, left + wide / 2, height - 6);
      });
      pen.strokeStyle = colour("line");
      pen.lineWidth = 1;
      pen.strokeRect(0.5, -1, width - 1, foot + 1);
    },
  );
  /* Set one of q; the others keep their proportions. */
  function set(bar, value) {
    const free = 1 - Math.min(1 - 2 * LEAST, Math.max(LEAST, value));
    const others = 1 - state.q[bar];
    state.bar = bar;
    put(state.q.map((q, k) => (k === bar ? 1 - free : (q / others) * free)));
  }
  function put(q) {
    const raised = q.map((p) => Math.max(LEAST, p));
    const sum = raised.reduce((a, b) => a + b);
    state.q = raised.map((p) => p / sum);
    sliders.forEach((slider, k) => slider.put(state.q[k]));
    show();
  }
  const scale = () => ({ left: -0.5, right: 2.5, bottom: -FOOT / (chart.clientHeight - FOOT), top: 1 });
  book.movable(chart, {
    at: () => [state.bar, state.q[state.bar]], scale, step: [1, 0.02],
    move: (x, y, first) => {
      if (first === false) return set(state.bar, y);
      const bar = Math.min(2, Math.max(0, Math.round(x)));
      if (first === undefined && bar !== state.bar) { state.bar = bar; return show(); }
      return set(bar, y);
    },
  });

  const said = book.spoken();
  const cells = { evidence: element("td"), elbo: element("td"), gap: element("td") };
  const row = (words, cell) => element("tr", {}, element("th", { scope: "row" }, words), cell);
  const table = element("table", { class: "vae-terms" },
    element("caption", {}, "nats"),
    element("tbody", {}, row("log p(x)", cells.evidence), row("ELBO", cells.elbo), row("gap = KL(q ‖ posterior)", cells.gap)));
  function show() {
    chart.scene();
    const now = terms();
    for (const [key, cell] of Object.entries(cells)) cell.textContent = fixed(now[key], 4);
    said.say(() => `q = (${state.q.map((q) => fixed(q)).join(", ")}), bar ${state.bar + 1} in hand. ELBO ${fixed(now.elbo, 4)}, gap ${fixed(now.gap, 4)}; together log p(x) = ${fixed(now.evidence, 4)} nats.`);
  }
  const sliders = prior.map((_, k) => book.slider({
    label: `q(z = ${k + 1})`, min: LEAST, max: 1 - 2 * LEAST, step: 0.001, value: 1 / 3, oninput: (value) => set(k, value),
  }));
  const settings = [["the prior", prior], ["the posterior", posterior], ["even", [1 / 3, 1 / 3, 1 / 3]]];
  const buttons = settings.map(([words, q]) => book.button(words, () => put(q)));
  const side = element("div", { class: "vae-side" }, ...sliders, table, element("div", { class: "vae-row" }, ...buttons));
  body.append(element("div", { class: "vae-panes" }, chart, side), said,
    book.hint("The bars are q, the green lines the posterior, the dashed ones the prior. Drag a bar, or choose one with the left and right arrow keys and move it with the others; the other two keep their proportions.", chart));
  show();
  return { state, put, set, terms };
};
