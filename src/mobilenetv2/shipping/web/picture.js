// Pictures as the classifier wants them. Resizing is Pillow's, bit for bit, as in training: the
// model could do it too, but with whole matrices, which takes long for a photo.

const MOST_PIXELS = 16e6; // some phones give no larger canvas; beyond it the browser scales down

/** A picture file, upright, transparency on white, colour profiles left alone as in training. */
export async function decoded(file) {
  const bitmap = await createImageBitmap(file, {
    imageOrientation: "from-image",
    colorSpaceConversion: "none",
  });
  const pixels = pixelsOf(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return pixels;
}

/** What a bitmap or video shows: {width, height, data} with RGBA bytes. */
export function pixelsOf(source, width, height) {
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(width * scale));
  canvas.height = Math.max(1, Math.floor(height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** RGBA pixels as the model takes them, RGB, with the shorter side already resized. */
export function prepared(pixels, input) {
  const { width, height } = pixels;
  const channels = input.colour === "grey" ? 1 : 3;
  const short = Math.min(width, height);
  const long = (side) => Math.max(1, Math.trunc((input.resize * side) / short));
  const size = width <= height ? [input.resize, long(height)] : [long(width), input.resize];
  let bytes = withoutAlpha(pixels.data, channels);
  bytes = resizedAcross(bytes, width, height, channels, size[0]);
  bytes = resizedDown(bytes, size[0], height, channels, size[1]);
  return { width: size[0], height: size[1], data: channels === 1 ? repeated(bytes) : bytes };
}

/** A grey picture with each byte three times. */
export function repeated(grey) {
  const rgb = new Uint8Array(grey.length * 3);
  for (let i = 0; i < grey.length; i++) rgb[3 * i] = rgb[3 * i + 1] = rgb[3 * i + 2] = grey[i];
  return rgb;
}

function withoutAlpha(rgba, channels) {
  const count = rgba.length / 4;
  const bytes = new Uint8Array(count * channels);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 1) {
      bytes[i] = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16;
    } else {
      bytes[3 * i] = r;
      bytes[3 * i + 1] = g;
      bytes[3 * i + 2] = b;
    }
  }
  return bytes;
}

/** For each new pixel: the first old one that it sees, and the weights of it and the next, in 2⁻²². */
function triangles(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) {
      weights.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) * (1 / reach))));
    }
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => Math.trunc(0.5 + (weight / sum) * 2 ** 22)) };
  });
}

function resizedAcross(bytes, width, height, channels, to) {
  if (width === to) return bytes;
  const resized = new Uint8ClampedArray(to * height * channels);
  triangles(width, to).forEach(({ first, weights }, x) => {
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < channels; c++) {
        let sum = 1 << 21;
        let at = (y * width + first) * channels + c;
        for (const weight of weights) {
          sum += weight * bytes[at];
          at += channels;
        }
        resized[(y * to + x) * channels + c] = sum >> 22;
      }
    }
  });
  return resized;
}

function resizedDown(bytes, width, height, channels, to) {
  if (height === to) return bytes;
  const row = width * channels;
  const resized = new Uint8ClampedArray(to * row);
  triangles(height, to).forEach(({ first, weights }, y) => {
    for (let x = 0; x < row; x++) {
      let sum = 1 << 21;
      let at = first * row + x;
      for (const weight of weights) {
        sum += weight * bytes[at];
        at += row;
      }
      resized[y * row + x] = sum >> 22;
    }
  });
  return resized;
}
