/* Finds the widgets of a page and loads what they need, each when the reader comes near it.
   Classic scripts, so that a page works from a disk. Without this file a picture stands there. */
(() => {
  "use strict";
  const folder = new URL(".", document.currentScript.src).href;
  const NEEDS = {
    plane: ["two-decoder", "map"],
    sliders: ["fifty-decoder", "digits"],
    draw: ["two-decoder", "two-encoder", "digits", "map"],
    bells: [],
    gap: [],
    beta: [],
  };
  window.vaeBook = { data: {}, make: {} };

  const asked = {};
  const load = (name, element) => {
    asked[name] ||= new Promise((resolve, reject) => {
      element.onload = resolve;
      element.onerror = reject;
      document.head.append(element);
    });
    return asked[name];
  };
  const script = (name) => {
    const made = document.createElement("script");
    made.async = false; // they run in the order in which they are asked for
    made.src = `${folder}${name}.js`;
    return load(name, made);
  };

  async function start(place) {
    const name = place.dataset.widget;
    const href = `${folder}widgets.css`;
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href });
    await Promise.all([load("style", style), ...["core", ...NEEDS[name], name].map(script)]);
    const body = document.createElement("div");
    body.className = "vae-body";
    place.vae = vaeBook.make[name](body);
    // Only now the picture may go: had anything failed, it would still stand there.
    place.append(body);
    place.classList.add("live");
  }

  addEventListener("DOMContentLoaded", () => {
    const near = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting) continue;
          near.unobserve(target);
          start(target);
        }
      },
      { rootMargin: "600px" },
    );
    document.querySelectorAll(".vae-widget").forEach((place) => near.observe(place));
  });
})();
