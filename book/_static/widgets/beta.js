/* Which beta am I using? Reductions, weights and sizes in; beta and sigma out. */
vaeBook.make.beta = (body) => {
  "use strict";
  const book = vaeBook;
  const { element } = book;
  const one = { pixels: 784, latents: 10, reconstruction: "mean", divergence: "mean", weightRec: 1, weightKl: 1, kind: "squared error" };
  const entropy = { kind: "cross entropy" };
  const SETTINGS = {
    "the cell above": one,
    "AntixK": { ...one, pixels: 3 * 64 * 64, latents: 128, divergence: "sum", weightKl: 0.00025 },
    "Flax NNX": { ...one, latents: 32, weightKl: 0.1, ...entropy },
    "GDL": { ...one, pixels: 32 * 32, latents: 2, divergence: "sum", weightRec: 500, ...entropy },
    "JAX AI stack": { ...one, pixels: 64, latents: 8, weightKl: 0.1, ...entropy },
    "pytorch/examples": { ...one, latents: 20, reconstruction: "sum", divergence: "sum", ...entropy },
  };
  const state = { ...one };

  function implied({ pixels, latents, reconstruction, divergence, weightRec, weightKl }) {
    const perPixel = weightRec / (reconstruction === "mean" ? pixels : 1);
    const beta = weightKl / (divergence === "mean" ? latents : 1) / perPixel;
    return { beta, sigma: Math.sqrt(beta / 2) };
  }
  const short = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });

  const said = book.spoken();
  said.classList.add("vae-answer");
  const inputs = {};
  function field(key, label, input) {
    input.id = book.name();
    inputs[key] = input;
    input.value = state[key];
    input.addEventListener("input", () => {
      state[key] = input.type === "number" ? input.valueAsNumber : input.value;
      show();
    });
    return element("div", { class: "vae-field" }, element("label", { for: input.id }, label), input);
  }
  const number = (attributes) => element("input", { type: "number", ...attributes });
  const list = (...options) => element("select", {}, ...options.map((o) => element("option", { value: o }, o)));
  const group = (legend, ...fields) => element("fieldset", { class: "vae-group" }, element("legend", {}, legend), ...fields);

  function show() {
    const whole = ["pixels", "latents"].every((key) => Number.isInteger(state[key]) && state[key] > 0);
    const weights = state.weightRec > 0 && state.weightKl >= 0;
    for (const [key, input] of Object.entries(inputs)) {
      if (input.type === "number") input.setAttribute("aria-invalid", String(!input.checkValidity()));
    }
    if (!whole || !weights) {
      said.say(() => "Sizes are whole numbers above zero; the weight of the reconstruction is above zero, that of the divergence not below.");
      return;
    }
    const { beta, sigma } = implied(state);
    const means = beta === 1 ? "The loss is −ELBO." : `A nat of rate is counted ${beta > 1 ? "more" : "less"} than once.`;
    if (state.kind === "cross entropy") said.say(() => `β = ${short(beta)}. ${means}`);
    else said.say(() => `β = ${short(beta)}: a nat has to save ${short(beta)} of squared error. The decoder is told that a pixel is off by σ = ${short(sigma)}, in the unit of the pixels.`);
  }
  function fill(name) {
    Object.assign(state, SETTINGS[name]);
    for (const [key, input] of Object.entries(inputs)) input.value = state[key];
    show();
  }
  const presets = element("div", { class: "vae-row" }, ...Object.keys(SETTINGS).map((name) => book.button(name, () => fill(name))));
  body.append(
    element("div", { class: "vae-groups" },
      group("Reconstruction",
        field("kind", "kind", list("squared error", "cross entropy")),
        field("reconstruction", "over the pixels", list("mean", "sum")),
        field("pixels", "pixels, times channels", number({ min: 1, step: 1 })),
        field("weightRec", "weight", number({ min: 1e-12, step: "any" }))),
      group("Divergence",
        field("divergence", "over the latents", list("mean", "sum")),
        field("latents", "latents", number({ min: 1, step: 1 })),
        field("weightKl", "weight", number({ min: 0, step: "any" })))),
    book.hint("Fill in:"), presets, said,
    book.hint("Over the batch both terms are averaged, or both summed. If one alone is summed over a batch of M images, multiply its weight by M."),
  );
  show();
  return { state, implied, fill };
};
