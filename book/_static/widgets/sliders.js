/* Sliders: a network with fifty latents, of which twenty carry something. */
vaeBook.make.sliders = (body) => {
  "use strict";
  const book = vaeBook;
  const { element, fixed } = book;
  const data = book.data["fifty-decoder"];
  const decoder = book.network(data.decoder);
  const order = data.rates.map((_, k) => k).sort((a, b) => data.rates[b] - data.rates[a]);
  const used = order.filter((k) => data.rates[k] > 0.01);
  // Those that carry something, and one of the others, to see that it does nothing.
  const shown = [...used, order[used.length]];
  const state = { z: new Array(data.rates.length).fill(0), view: book.VIEWS[0] };

  const sheet = book.digit("What the decoder draws");
  const start = book.digit("The held-out image that was started from");
  const said = book.spoken();
  let last = "";
  let before = null;

  function show() {
    const logits = book.run(decoder, state.z);
    sheet.show(book.seen(logits, state.view));
    const ink = logits.map(book.sigmoid);
    const changed = before ? ink.reduce((sum, p, k) => sum + Math.abs(p - before[k]), 0) : 0;
    const far = Math.sqrt(state.z.reduce((sum, z) => sum + z * z, 0));
    said.say(() => `${last}Against the start ${fixed(changed, 0)} pixels’ worth of ink are changed. z lies ${fixed(far)} from the origin.`);
    return logits;
  }
  function put(z, words) {
    state.z = [...z];
    before = book.run(decoder, z).map(book.sigmoid);
    sliders.forEach((slider, k) => slider.put(z[shown[k]]));
    last = words;
    show();
  }
  const sliders = shown.map((latent, place) => book.slider({
    label: `${place + 1}: ${fixed(data.rates[latent])} nats`, min: -4, max: 4, step: 0.1, value: 0,
    show: (value) => fixed(value, 1),
    oninput: (value) => {
      state.z[latent] = value;
      last = `Latent ${place + 1} is at ${fixed(value, 1)}. `;
      show();
    },
  }));

  const blank = () => { start.hidden = true; };
  const reset = book.button("all to zero", () => { blank(); put(state.z.map(() => 0), "All latents are zero. "); });
  const draw = book.button("draw z from the prior", () => { blank(); put(state.z.map(book.normal), "z is a draw from the prior. "); });
  const from = book.select("start from a held-out", data.starts.map((_, k) => String(k)), begin);
  const go = book.button("start", () => begin(Number(from.querySelector("select").value)));
  function begin(digit) {
    start.hidden = false;
    start.show(book.unpacked(book.data.digits.bits[digit]));
    put(data.starts[digit], `z is the mean of a held-out ${digit}. `);
  }
  const again = book.button("toss again", () => { book.toss(); show(); });
  again.disabled = true;
  const views = book.choice("The picture shows the", book.VIEWS, (view) => {
    state.view = view;
    again.disabled = view !== "sample";
    show();
  });
  const pictures = element("div", { class: "vae-row vae-pictures" }, sheet, start);
  const side = element("div", { class: "vae-side vae-stays" }, pictures, views, again, element("div", { class: "vae-row" }, from, go), element("div", { class: "vae-row" }, reset, draw));
  const many = element("div", { class: "vae-many", role: "group", "aria-label": "Latents, in the order of their rates" }, ...sliders);
  const hint = book.hint(`Each label gives the place of a latent and its rate, on average over the held-out images. The last slider is one of the other ${state.z.length - used.length} latents, which carry nothing.`);
  body.append(element("div", { class: "vae-panes" }, side, many), said, hint);
  begin(0);
  return { state, put, show };
};
