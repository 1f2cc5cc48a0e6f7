// One piece of work at a time: its progress, its cancel button, and what went wrong.
import { byId } from "elements";

export function makeWorker(source) {
  let current = null;
  let ended = () => {};

  function show(doing, busy) {
    byId("doing").textContent = doing;
    byId("progress").value = 0;
    byId("progress").hidden = byId("cancel").hidden = !busy;
  }
  function fail(error) {
    byId("error").textContent = error.message;
    if (!error.status) console.error(error);
  }
  async function stop(said) {
    const { kind, id } = current ?? {};
    const abandoned = current !== null;
    current = null;
    show(said, false);
    await ended(abandoned);
    if (id) await source.cancel(kind, id);
  }
  byId("cancel").addEventListener("click", () => stop("Cancelled"));
  show("", false);

  return {
    fail,
    busy: () => current !== null,
    ended: (then) => (ended = then), // called with whether it was abandoned
    // Runs start(handlers) after cancelling what runs. Gives null where it fails or is cancelled;
    // handlers are then called no more.
    async run(kind, doing, handlers, start) {
      const stopped = stop("");
      byId("error").textContent = "";
      const mine = (current = { kind, id: null });
      show(doing, true);
      await stopped; // the same work may be asked for again
      if (mine !== current) return null;
      const progress = ({ done, of, ahead }) => {
        byId("progress").value = of ? done / of : 0;
        byId("doing").textContent = ahead ? `${doing}, after ${ahead} other requests` : doing;
      };
      const guarded = {};
      for (const [name, handler] of Object.entries({ ...handlers, progress })) guarded[name] = (data) => mine === current && handler(data);
      guarded.begun = (id) => {
        mine.id = id;
        if (mine === current) handlers.begun?.(id);
        else source.cancel(kind, id);
      };
      const result = await start(guarded).catch((error) => mine === current && (fail(error), null));
      if (mine !== current) return null;
      current = null;
      show("", false);
      ended(false);
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
