// The source of numbers that asks a server over its REST interface.
const RETRY = 1000;
const sleep = (ms, then) => new Promise((done) => setTimeout(done, ms, then));
const pauseOf = (answer) => 1000 * (Number(answer.headers.get("Retry-After")) || 1);

// The token is taken from the address once and kept for this tab.
function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.hash.replace(/token=[^&]*&?/, ""));
  }
  return sessionStorage.getItem("token");
}

function toFloats({ data }) {
  return new Float32Array(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer);
}

function toArray(x, shape) {
  const bytes = new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
  return { shape, data: btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), "")) };
}

async function problem(answer) {
  const said = await answer.json().catch(() => ({}));
  return Object.assign(new Error(said.detail ?? `The server answers ${answer.status}.`), { status: answer.status });
}

// An event's lines `name: value`; one without a name is a comment.
const fieldsOf = (block) => Object.fromEntries(block.split("\n").map((line) => line.split(/: ?(.*)/)).filter(([name]) => name));

// The events of a stream, until it ends or breaks off.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const { id, event, data } of blocks.map(fieldsOf)) if (data) yield { id, name: event, data: JSON.parse(data) };
  }
}

export function makeSource() {
  // Whoever asks, it is one question a second at most.
  let asked = null;
  const alive = () => (asked ??= fetch("/health", { signal: AbortSignal.timeout(4000) })
    .then((answer) => answer.ok, () => false)
    .finally(() => setTimeout(() => (asked = null), RETRY)));

  // An answer, or null where there is none. What begins work is not aborted: its id must be known.
  function send(path, { method = "GET", body, headers, signal } = {}) {
    const json = body === undefined ? {} : { "Content-Type": "application/json" };
    const secret = token();
    const authorization = secret ? { Authorization: `Bearer ${secret}` } : {};
    const options = { method, headers: { ...authorization, ...json, ...headers }, body: body && JSON.stringify(body) };
    return fetch(path, { ...options, signal: method === "POST" ? null : signal }).catch(() => null);
  }

  // Requests may be repeated, since the same request has the same id: a lost server is waited for.
  async function call(path, options = {}) {
    const { signal } = options;
    for (;; signal?.throwIfAborted()) {
      const answer = await send(path, options);
      if (answer?.ok) return answer;
      signal?.throwIfAborted();
      if (answer?.status === 429) await sleep(pauseOf(answer));
      else if (answer && answer.status !== 503) throw await problem(answer);
      else do await sleep(RETRY); while (!(await alive()));
    }
  }
  const shapes = new Map(); // of the models asked for
  const get = async (path) => (await call(path)).json();
  const post = async (path, body, signal) => (await call(path, { method: "POST", body, signal })).json();

  // The work that a path and a body begin, from its beginning to its end.
  async function finished(kind, from, body, handlers) {
    const { signal } = handlers;
    const begun = await post(from, body, signal);
    const path = `/v1/${kind}/${encodeURIComponent(begun.id)}`;
    await handlers.begun?.(begun.id);
    for (let last; ; await sleep(RETRY / 4)) {
      const answer = await call(`${path}/events`, { signal, headers: last === undefined ? {} : { "Last-Event-ID": last } });
      for await (const { id, name, data } of events(answer.body)) {
        last = id ?? last;
        if (name !== "end") handlers[name]?.(data);
        else if (data.status === "failed") throw new Error(data.detail);
        else return data.status === "done" ? get(path) : { ...begun, ...data };
      }
      signal?.throwIfAborted();
    }
  }

  return {
    kind: "server",
    alive,
    models: async () => (await get("/v1/models")).models,
    async model(id) {
      const model = await get(`/v1/models/${encodeURIComponent(id)}`);
      shapes.set(id, model.shape);
      return model;
    },
    regimes: (id) => get(`/v1/regimes/${encodeURIComponent(id)}`),
    async image(model, index) {
      const answer = await get(`/v1/models/${encodeURIComponent(model)}/images/${index}?as=json`);
      return { ...answer, image: toFloats(answer.image) };
    },
    trunk: (request, handlers) => finished("trunks", "/v1/trunks", request, handlers),
    // Null, after a while, where the trunk has not come there yet.
    async state(trunk, step) {
      const answer = await call(`/v1/trunks/${encodeURIComponent(trunk.id)}/states?step=${step}&as=json`);
      if (answer.status === 202) return sleep(pauseOf(answer), null);
      const found = await answer.json();
      return { ...found, x: toFloats(found.x) };
    },
    async denoise(model, x, step, denoisers) {
      const { denoised } = await post("/v1/denoise", { model, x: toArray(x, shapes.get(model)), step, denoisers });
      return Object.fromEntries(Object.entries(denoised).map(([name, array]) => [name, toFloats(array)]));
    },
    forks: (trunk, request, handlers) => finished("forks", `/v1/trunks/${encodeURIComponent(trunk.id)}/forks`, request, handlers),
    ends: async (fork) => toFloats((await get(`/v1/forks/${encodeURIComponent(fork.id)}/ends?as=json`)).x),
    async uturn(request, handlers) {
      const body = await finished("uturns", "/v1/uturns", request, handlers);
      if (body.status !== "done") return body;
      return { ...body, start: toFloats(body.start), turning: toFloats(body.turning), ends: toFloats(body.ends) };
    },
    cancel: (kind, id) => send(`/v1/${kind}/${encodeURIComponent(id)}`, { method: "DELETE", signal: AbortSignal.timeout(4000) }),
  };
}
