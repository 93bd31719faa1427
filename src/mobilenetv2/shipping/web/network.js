// ONNX Runtime Web around the exported file, which takes uint8 RGB pictures and gives probabilities.

/** Loads runtime and model, all checked against the digests that the page came with. */
export async function load(about) {
  const [script, wasm, model] = await Promise.all(
    [about.runtime.script, about.runtime.wasm, about.model].map(checked),
  );
  const runtime = await imported(script);
  runtime.env.wasm.numThreads = 1; // threads need headers that plain web servers do not send
  runtime.env.wasm.wasmBinary = wasm;
  const session = await runtime.InferenceSession.create(model, { executionProviders: ["wasm"] });

  /** Probabilities of one picture {width, height, data} with RGB bytes. */
  async function probabilities({ width, height, data }) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.length);
    const pictures = new runtime.Tensor("uint8", bytes, [1, height, width, 3]);
    const output = await session.run({ pictures }, ["probabilities"]);
    return output.probabilities.data;
  }

  const { height, width } = about.input;
  await probabilities({ width, height, data: new Uint8Array(height * width * 3) }); // the first is slow
  return probabilities;
}

/** The bytes of a file, wherever they come from; the browser refuses those with another digest. */
async function checked({ file, integrity }) {
  const response = await fetch(file, { integrity }).catch((error) => {
    throw new Error(`${file}: ${error.message}`, { cause: error });
  });
  if (!response.ok) throw new Error(`${file}: ${response.status} ${response.statusText}`);
  return response.arrayBuffer();
}

/** A module from bytes. Its address would be fetched again, and import() does not check digests. */
async function imported(script) {
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  try {
    return await import(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}
