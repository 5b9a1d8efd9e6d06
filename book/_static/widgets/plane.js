/* The plane: move a point over the two latents, and see what the decoder draws there. */
vaeBook.make.plane = (body) => {
  "use strict";
  const book = vaeBook;
  const { element, fixed } = book;
  const decoder = book.network(book.data["two-decoder"].decoder);
  const state = { z: [-0.5, 1.5], view: book.VIEWS[0] };

  const map = book.map(
    { class: "vae-map", role: "application", "aria-roledescription": "point on a plane", "aria-label": "The plane of two latents" },
    (pen, place, colour) => {
      const [x, y] = place(state.z);
      for (const [radius, width, called] of [[9, 5, "ground"], [9, 2.5, "ink"]]) {
        pen.strokeStyle = colour(called);
        pen.lineWidth = width;
        pen.beginPath();
        pen.arc(x, y, radius, 0, 7);
        pen.stroke();
      }
    },
  );
  const sheet = book.digit("What the decoder draws");
  const said = book.spoken();
  const hint = book.hint("Drag the ring, or move it with the arrow keys (with Shift in small steps). Each dot is the mean of a held-out image, in the colour of its digit. The dotted circle holds 95 % of the prior.", map);

  function show() {
    const logits = book.run(decoder, state.z);
    sheet.show(book.seen(logits, state.view));
    map.scene();
    said.say(() => {
      const near = book.nearest(state.z).slice(0, 3).map(([digit, times]) => `${times} × ${digit}`);
      const ink = logits.reduce((sum, l) => sum + book.sigmoid(l), 0);
      return `z = (${fixed(state.z[0])}, ${fixed(state.z[1])}). The 15 nearest held-out images: ${near.join(", ")}. Ink to expect: ${fixed(ink, 0)} of 784 pixels.`;
    });
    return logits;
  }
  function move(x, y) {
    const z = [x, y];
    state.z = z;
    sliders.forEach((slider, k) => slider.put(z[k]));
    show();
  }
  const sliders = [0, 1].map((k) => book.slider({
    label: `z${"₁₂"[k]}`, min: -book.mapEdge, max: book.mapEdge, step: 0.05, value: state.z[k],
    oninput: (value) => move(...state.z.map((z, j) => (j === k ? value : z))),
  }));
  book.movable(map, { at: () => state.z, move, scale: book.mapScale, step: 0.25 });

  const again = book.button("toss again", () => { book.toss(); show(); });
  const views = book.choice("The picture shows the", book.VIEWS, (view) => {
    state.view = view;
    again.disabled = view !== "sample";
    show();
  });
  again.disabled = true;
  const draw = book.button("draw z from the prior", () => move(book.normal(), book.normal()));
  const side = element("div", { class: "vae-side" }, sheet, views, element("div", { class: "vae-row" }, again, draw), ...sliders);
  body.append(element("div", { class: "vae-panes" }, map, side), said, hint);
  show();
  return { state, move, show };
};
