// Report every 15 seconds that the panel is on screen.
const EVERY = 15_000;    // ms

export default {
  render({ model, el }) {
    el.style.display = "none";
    const report = () => {
      const panel = el.closest(".zz-panel");
      if (!document.hidden && panel && panel.getClientRects().length)
        model.send({ here: true });
    };
    const timer = setInterval(report, EVERY);
    const first = setTimeout(report, 500);
    document.addEventListener("visibilitychange", report);
    return () => {
      clearInterval(timer);
      clearTimeout(first);
      document.removeEventListener("visibilitychange", report);
    };
  },
};
