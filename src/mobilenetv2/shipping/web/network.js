// ONNX Runtime Web around the exported file, which takes uint8 RGB pictures and gives probabilities.

/** Loads runtime and model, both checked against the digests that the page came with. */
export async function load(about) {
  const [runtime, wasm, model] = await Promise.all([
    import(document.getElementById("runtime").src),
    download(about.runtime.wasm, about.runtime.integrity),
    download(about.model.file, about.model.integrity),
  ]);
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

async function download(url, integrity) {
  const response = await fetch(url, { integrity });
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return response.arrayBuffer();
}
