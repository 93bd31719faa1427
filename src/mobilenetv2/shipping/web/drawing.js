// A sheet to draw on, with finger, mouse, pen or keys. What the network gets is not the sheet: the
// strokes are drawn anew as large, as thick and as central as in the pictures that it learned from.

const STEP = 1 / 40; // of the sheet, for one press of an arrow key
const MOST_ZOOM = 5; // a dot stays a dot
const SHARP = 512; // pixels to draw on before averaging

export class Sheet {
  /** canvas: the sheet; style: how training pictures are drawn; changed: called after each change. */
  constructor(canvas, style, changed) {
    this.canvas = canvas;
    this.style = style;
    this.changed = changed;
    this.strokes = []; // lists of [x, y], from 0 to 1
    this.pen = { x: 0.5, y: 0.25, down: false, shown: false }; // the one that keys move
    canvas.classList.toggle("dark-ink", style.ink === "dark");
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.go(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(kind, () => (this.drawing = false));
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.hidePen());
    new ResizeObserver(() => this.paint()).observe(canvas);
  }

  begin(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.drawing = true;
    this.pen.shown = this.pen.down = false;
    this.strokes.push([this.point(event)]);
    this.update();
  }

  go(event) {
    if (!this.drawing) return;
    for (const one of event.getCoalescedEvents?.() ?? []) this.strokes.at(-1).push(this.point(one));
    this.strokes.at(-1).push(this.point(event));
    this.update();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { pen } = this;
    if (event.key in ways && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const [across, down] = ways[event.key];
      pen.x = Math.min(1, Math.max(0, pen.x + across * STEP));
      pen.y = Math.min(1, Math.max(0, pen.y + down * STEP));
      if (pen.down) this.strokes.at(-1).push([pen.x, pen.y]);
    } else if (event.key === " ") {
      pen.down = !pen.down && pen.shown;
      if (pen.down) this.strokes.push([[pen.x, pen.y]]);
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.undo();
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else return;
    event.preventDefault();
    pen.shown = true;
    this.update();
  }

  hidePen() {
    this.pen.shown = this.pen.down = false;
    this.paint();
  }

  undo() {
    this.strokes.pop();
    this.pen.down = false;
    this.update();
  }

  clear() {
    this.strokes = [];
    this.pen.down = false;
    this.update();
  }

  update() {
    this.paint();
    this.changed();
  }

  /** Shows the strokes as they were made. */
  paint() {
    const side = Math.round(this.canvas.clientWidth * devicePixelRatio);
    if (!side) return; // on a tab that is not shown
    if (this.canvas.width !== side) this.canvas.width = this.canvas.height = side;
    const context = this.canvas.getContext("2d");
    const light = this.style.ink === "light";
    context.clearRect(0, 0, side, side);
    const width = Math.max(0.02, (this.style.stroke / this.style.box) * 0.7) * side;
    trace(context, this.strokes, width, light ? "#fff" : "#000", ([x, y]) => [x * side, y * side]);
    if (!this.pen.shown) return;
    context.beginPath();
    context.arc(this.pen.x * side, this.pen.y * side, width / 2 + 4, 0, 2 * Math.PI);
    context.lineWidth = 3;
    context.strokeStyle = this.pen.down ? "#ff7a59" : "#5b8cff";
    context.stroke();
  }

  /** The drawing as the network knows drawings: grey bytes, height × width. */
  picture(height, width) {
    const { style } = this;
    const side = Math.min(height, width);
    const points = this.strokes.flat();
    const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => y)];
    const low = [Math.min(...xs), Math.min(...ys)];
    const high = [Math.max(...xs), Math.max(...ys)];
    const extent = Math.max(high[0] - low[0], high[1] - low[1]);
    // The box of the ink reaches half a stroke beyond the line on either side.
    const zoom = Math.min(((style.box - style.stroke) * side) / extent, MOST_ZOOM * style.box * side);
    const middle =
      style.centre === "mass" ? massOf(this.strokes) : [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2];
    const fine = Math.max(1, Math.round(SHARP / Math.max(height, width)));
    const canvas = document.createElement("canvas");
    canvas.width = width * fine;
    canvas.height = height * fine;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    trace(context, this.strokes, style.stroke * side * fine, "#fff", ([x, y]) => [
      ((x - middle[0]) * zoom + width / 2) * fine,
      ((y - middle[1]) * zoom + height / 2) * fine,
    ]);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const sums = new Float64Array(height * width);
    for (let y = 0; y < canvas.height; y++) {
      const row = Math.floor(y / fine) * width;
      for (let x = 0; x < canvas.width; x++) {
        sums[row + Math.floor(x / fine)] += data[4 * (y * canvas.width + x) + 3];
      }
    }
    return Uint8Array.from(sums, (sum) => {
      const ink = Math.round(sum / fine ** 2);
      return style.ink === "light" ? ink : 255 - ink;
    });
  }
}

/** Strokes as smooth lines with round ends. */
function trace(context, strokes, width, colour, place) {
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const stroke of strokes) {
    const points = stroke.map(place);
    context.beginPath();
    context.moveTo(...points[0]);
    for (let i = 1; i < points.length - 1; i++) {
      const middle = [(points[i][0] + points[i + 1][0]) / 2, (points[i][1] + points[i + 1][1]) / 2];
      context.quadraticCurveTo(...points[i], ...middle);
    }
    context.lineTo(...points.at(-1));
    context.stroke();
  }
}

/** The centre of mass of the lines. */
function massOf(strokes) {
  let [mass, x, y] = [0, 0, 0];
  for (const stroke of strokes) {
    stroke.forEach((point, i) => {
      const before = stroke[Math.max(0, i - 1)];
      const weight = Math.hypot(point[0] - before[0], point[1] - before[1]) + 1e-6;
      mass += weight;
      x += (weight * (point[0] + before[0])) / 2;
      y += (weight * (point[1] + before[1])) / 2;
    });
  }
  return [x / mass, y / mass];
}
