// The source of numbers that asks a server over its REST interface.
const RETRY = 1000;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

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
  const alive = () => fetch("/health").then((answer) => answer.ok, () => false);

  // Requests may be repeated, since the same request has the same id: a lost server is waited for.
  async function call(path, { method = "GET", body, headers } = {}) {
    for (;;) {
      const json = body === undefined ? {} : { "Content-Type": "application/json" };
      const secret = token();
      const authorization = secret ? { Authorization: `Bearer ${secret}` } : {};
      const options = { method, headers: { ...authorization, ...json, ...headers }, body: body && JSON.stringify(body) };
      const answer = await fetch(path, options).catch(() => null);
      if (answer?.status === 429) await sleep(1000 * (Number(answer.headers.get("Retry-After")) || 1));
      else if (answer && answer.status !== 503) {
        if (answer.ok) return answer;
        throw await problem(answer);
      } else do await sleep(RETRY); while (!(await alive()));
    }
  }
  const shapes = new Map(); // of the models asked for
  const get = async (path) => (await call(path)).json();
  const post = async (path, body) => (await call(path, { method: "POST", body })).json();

  async function finished(kind, begun, handlers) {
    const path = `/v1/${kind}/${encodeURIComponent(begun.id)}`;
    handlers.begun?.(begun.id);
    for (let last; ; await sleep(RETRY / 4)) {
      const answer = await call(`${path}/events`, { headers: last === undefined ? {} : { "Last-Event-ID": last } });
      for await (const { id, name, data } of events(answer.body)) {
        last = id ?? last;
        if (name !== "end") handlers[name]?.(data);
        else if (data.status === "failed") throw new Error(data.detail);
        else return data.status === "done" ? get(path) : { ...begun, ...data };
      }
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
    trunk: async (request, handlers) => finished("trunks", await post("/v1/trunks", request), handlers),
    async state(trunk, step) {
      const answer = await get(`/v1/trunks/${encodeURIComponent(trunk.id)}/states?step=${step}&as=json`);
      return { ...answer, x: toFloats(answer.x) };
    },
    async denoise(model, x, step, denoisers) {
      const { denoised } = await post("/v1/denoise", { model, x: toArray(x, shapes.get(model)), step, denoisers });
      return Object.fromEntries(Object.entries(denoised).map(([name, array]) => [name, toFloats(array)]));
    },
    forks: async (trunk, request, handlers) => finished("forks", await post(`/v1/trunks/${encodeURIComponent(trunk.id)}/forks`, request), handlers),
    ends: async (fork) => toFloats((await get(`/v1/forks/${encodeURIComponent(fork.id)}/ends?as=json`)).x),
    async uturn(request, handlers) {
      const body = await finished("uturns", await post("/v1/uturns", request), handlers);
      if (body.status !== "done") return body;
      return { ...body, start: toFloats(body.start), turning: toFloats(body.turning), ends: toFloats(body.ends) };
    },
    cancel: (kind, id) => call(`/v1/${kind}/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(() => null),
  };
}
