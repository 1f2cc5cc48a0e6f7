// One piece of work at a time: its progress, its cancel button, and what went wrong.
import { byId } from "elements";

export function makeWorker(source) {
  let current = null;
  const show = (doing) => {
    byId("work").classList.toggle("busy", doing !== null);
    byId("cancel").disabled = doing === null;
    byId("doing").textContent = doing ?? "";
    byId("progress").value = 0;
  };
  const fail = (error) => {
    byId("error").textContent = error?.message ?? "";
    if (error && !error.status) console.error(error);
  };
  const stop = () => {
    if (current?.id) source.cancel(current.kind, current.id);
    current = null;
    show(null);
  };
  byId("cancel").addEventListener("click", () => {
    if (current) byId("doing").textContent = "Cancelled.";
    const said = byId("doing").textContent;
    stop();
    byId("doing").textContent = said;
  });
  show(null);
  return {
    fail,
    busy: () => current !== null,
    // Runs start(handlers); what was running is cancelled. Gives null where this is in its turn,
    // or fails. `handlers` of the source's: those of abandoned work are not called.
    async run(kind, doing, handlers, start) {
      stop();
      fail(null);
      const mine = (current = { kind, id: null });
      show(doing);
      const guarded = Object.fromEntries(Object.entries(handlers).map(([name, handler]) => [name, (data) => mine === current && handler(data)]));
      guarded.begun = (id) => {
        mine.id = id;
        if (mine !== current) source.cancel(kind, id);
        else handlers.begun?.(id);
      };
      guarded.progress = ({ done, of, ahead }) => {
        if (mine !== current) return;
        byId("progress").value = of ? done / of : 0;
        byId("doing").textContent = ahead ? `${doing}, after ${ahead} other requests` : doing;
      };
      try {
        const result = await start(guarded);
        return mine === current && result.status === "done" ? result : null;
      } catch (error) {
        if (mine === current) fail(error);
        return null;
      } finally {
        if (mine === current) {
          current = null;
          show(null);
        }
      }
    },
  };
}

// Says when the server is lost; requests wait for it by themselves.
export async function watch(source, every = 2000) {
  for (;;) {
    const alive = await source.alive();
    byId("banner").hidden = alive;
    byId("banner").textContent = alive ? "" : "The server does not answer, or is still starting. This page tries again by itself and goes on when it is back.";
    await new Promise((done) => setTimeout(done, alive ? every : every / 2));
  }
}
