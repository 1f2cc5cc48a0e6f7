// One piece of work at a time: its progress, its cancel button, and what went wrong.
import { byId } from "elements";

export function makeWorker(source) {
  let current = null;
  let past = Promise.resolve(); // when all that ran before has ended
  let noted = ""; // stands in the error line whatever runs
  let changed = () => {};

  function show(doing, busy) {
    byId("doing").textContent = doing;
    if (!busy && document.activeElement === byId("cancel")) byId("axis").focus();
    byId("progress").value = 0;
    byId("progress").hidden = byId("cancel").hidden = !busy;
  }
  function fail(error) {
    byId("error").textContent = error.message;
    if (!error.status) console.error(error);
  }
  // Cancels what is known to have begun, while it is still listened to: it goes on for others.
  async function abandon({ kind, id, cut }) {
    if (id) await source.cancel(kind, id);
    cut.abort();
  }
  function stop(said) {
    const abandoned = current;
    current = null;
    show(said, false);
    if (abandoned) past = Promise.all([past, abandon(abandoned)]);
    changed(Boolean(abandoned));
  }
  byId("cancel").addEventListener("click", () => stop("Cancelled"));
  show("", false);

  return {
    fail,
    busy: () => current !== null,
    changed: (then) => (changed = then), // called when work begins or ends, with whether it was abandoned
    note: (text) => (byId("error").textContent = noted = text),
    // Runs start(handlers) after cancelling what runs. Gives null where it fails or is cancelled;
    // handlers are then called no more.
    async run(kind, doing, handlers, start) {
      stop("");
      byId("error").textContent = noted;
      const mine = (current = { kind, id: null, cut: new AbortController() });
      show(doing, true);
      changed(false);
      const progress = ({ done, of, ahead }) => {
        byId("progress").value = of ? done / of : 0;
        byId("doing").textContent = ahead ? `${doing}, after ${ahead} other requests` : doing;
      };
      const guarded = { signal: mine.cut.signal };
      for (const [name, handler] of Object.entries({ ...handlers, progress })) guarded[name] = (data) => mine === current && handler(data);
      guarded.begun = (id) => {
        mine.id = id;
        return mine === current ? handlers.begun?.(id) : abandon(mine);
      };
      // After what ran before: the same work may be asked for again. Of many requests the last alone begins.
      const running = past.then(() => (mine === current ? start(guarded) : null));
      past = running.catch(() => null);
      const result = await running.catch((error) => mine === current && (fail(error), null));
      if (mine !== current) return null;
      current = null;
      show(result?.status === "cancelled" ? "Cancelled" : "", false); // by somebody else
      changed(false);
      return result?.status === "done" ? result : null;
    },
  };
}

// Says when the server is lost; requests wait for it by themselves.
export async function watch(source) {
  for (let alive = true; ; ) {
    await new Promise((done) => setTimeout(done, alive ? 3000 : 1000));
    alive = await source.alive();
    byId("banner").textContent = alive ? "" : "The server does not answer, or is still starting. This page tries again, and goes on when it is back.";
  }
}
