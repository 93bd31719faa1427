// The page: three sources of pictures, one classifier, one answer. Start reading at the end.

import { Camera } from "./camera.js";
import { Sheet } from "./drawing.js";
import { load } from "./network.js";
import { decoded, pixelsOf, prepared, repeated } from "./picture.js";
import { comma, percent, say, translate } from "./words.js";

const MOST_BARS = 5;
const SOURCES = ["draw", "picture", "camera"];
const element = (id) => document.getElementById(id);

let about; // page.json
let probabilities; // the network, once it is there
let source; // the tab that is open
let waiting = null; // a function that makes the newest picture; older ones are forgotten
let working = false;
let round = 0; // goes up when the answer is taken away, so that a late one does not come back

// ------------------------------------------------------------------ from a picture to an answer

/** Names the picture that `make` gives, as soon as the network is free. */
async function classify(make) {
  waiting = make;
  if (working || !probabilities) return;
  working = true;
  try {
    while (waiting) {
      const [next, begun] = [waiting, round];
      waiting = null;
      const start = performance.now();
      const picture = next();
      const shares = await probabilities(picture);
      if (round === begun) show(shares, picture, performance.now() - start);
    }
  } catch (error) {
    trouble(error);
  } finally {
    working = false;
  }
}

function show(shares, picture, ms) {
  const order = [...shares.keys()].sort((one, other) => shares[other] - shares[one]);
  const [label, share] = [about.labels[order[0]], shares[order[0]]];
  const sure = share >= about.sure;
  const answer = element("answer");
  answer.classList.remove("empty");
  answer.classList.toggle("unsure", !sure);
  Object.assign(answer.dataset, { label, probability: share, sure });
  const verdict = element("verdict");
  verdict.textContent = sure ? label : say("unsure");
  verdict.classList.toggle("long", verdict.textContent.length > 12);
  element("remark").textContent = sure ? percent(share) : say("perhaps", { label, share: percent(share) });
  [...element("bars").children].forEach((bar, rank) => {
    const [name, number, track] = bar.children;
    name.textContent = name.title = about.labels[order[rank]];
    number.textContent = percent(shares[order[rank]]);
    track.firstElementChild.style.transform = `scaleX(${shares[order[rank]]})`;
  });
  element("time").textContent = say("time", { ms: ms < 10 ? ms.toFixed(1) : Math.round(ms) });
  showSeen(picture);
  speak(sure ? say("spoken", { label, share: percent(share) }) : say("unsure"), sure && label);
}

/** The middle of the picture, which is all that the network looks at. */
function showSeen({ width, height, data }) {
  const canvas = element("seen");
  [canvas.width, canvas.height] = [about.input.width, about.input.height];
  const rgba = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    rgba.data.set([data[3 * i], data[3 * i + 1], data[3 * i + 2], 255], 4 * i);
  }
  const [left, top] = [(canvas.width - width) / 2, (canvas.height - height) / 2].map(Math.round);
  canvas.getContext("2d").putImageData(rgba, left, top);
}

/** For those who listen: a new answer (`subject` is its label), once it has stood for a moment. */
function speak(sentence, subject) {
  if (speak.subject === subject) return;
  speak.subject = subject;
  clearTimeout(speak.timer);
  speak.timer = setTimeout(() => (element("live").textContent = sentence), 700);
}

function empty() {
  waiting = null;
  round++;
  clearTimeout(speak.timer);
  speak.subject = null;
  element("live").textContent = "";
  const answer = element("answer");
  answer.classList.add("empty");
  answer.classList.remove("unsure");
  for (const key of ["label", "probability", "sure"]) delete answer.dataset[key];
  element("verdict").classList.remove("long");
  element("verdict").textContent = probabilities
    ? say(`ready.${source}`)
    : say("loading", { size: ((about.model.bytes + about.runtime.bytes) / 1e6).toFixed(1) });
  element("remark").textContent = "";
  for (const bar of element("bars").children) {
    bar.children[0].textContent = "–";
    bar.children[1].textContent = "";
    bar.children[2].firstElementChild.style.transform = "";
  }
}

function trouble(error) {
  document.body.dataset.state = "failed";
  element("trouble").hidden = false;
  element("trouble").textContent = say("failed", { reason: error.message ?? error });
}

// ------------------------------------------------------------------ where pictures come from

let sheet;
let read = null; // the picture file that was read last
let asked = 0; // files so far: a large one that was asked for earlier must not come later
const camera = new Camera(element("video"));

function prepareSheet() {
  sheet = new Sheet(element("paper"), about.drawing, nameDrawing);
  element("undo").onclick = () => sheet.undo();
  element("clear").onclick = () => sheet.clear();
}

function nameDrawing() {
  const blank = sheet.strokes.length === 0;
  element("invitation").hidden = !blank;
  element("undo").disabled = element("clear").disabled = blank;
  if (blank) return empty();
  return classify(() => {
    const { height, width, margin } = about.input;
    const size = { height: height + margin, width: width + margin };
    return { ...size, data: repeated(sheet.picture(size.height, size.width)) };
  });
}

function preparePictures() {
  const [file, drop] = [element("file"), element("drop")];
  element("choose").onclick = () => file.click();
  file.onchange = () => {
    if (file.files[0]) readFile(file.files[0]);
    file.value = ""; // so that the same file can be chosen again
  };
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files[0]) readFile(event.clipboardData.files[0]);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    open("picture");
    drop.classList.add("hovered");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("hovered");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("hovered");
    if (event.dataTransfer.files[0]) readFile(event.dataTransfer.files[0]);
  });
}

async function readFile(file) {
  open("picture");
  const note = element("picture-note");
  const number = ++asked;
  let picture;
  try {
    picture = await decoded(file);
  } catch {
    picture = null;
  }
  if (number !== asked) return;
  if (!picture) {
    note.textContent = say("pictureUnreadable", { name: file.name });
    note.setAttribute("role", "alert");
    return;
  }
  read = picture;
  note.removeAttribute("role");
  note.textContent = `${file.name} · ${read.width}×${read.height}`;
  const shown = element("shown");
  [shown.width, shown.height] = [read.width, read.height];
  shown.getContext("2d").putImageData(read, 0, 0);
  shown.hidden = false;
  element("dropping").hidden = true;
  if (source === "picture") namePicture(); // another tab may have been opened meanwhile
}

function namePicture() {
  const picture = read;
  if (picture) classify(() => prepared(picture, about.input));
}

function prepareCamera() {
  element("start").onclick = () => (camera.running ? stopCamera() : startCamera(() => camera.start()));
  element("switch").onclick = () => startCamera(() => camera.turn());
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stopCamera(); // no light stays on behind the user's back
  });
}

async function startCamera(start) {
  const note = element("camera-note");
  note.textContent = "";
  try {
    if (!(await start())) return; // another click, or another tab, came first
  } catch (reason) {
    stopCamera();
    note.textContent = say(reason.message);
    return;
  }
  note.textContent = say("cameraOn");
  element("camera-invitation").hidden = true;
  element("start").textContent = say("stop");
  nameFrames();
  const several = await Camera.several();
  if (camera.running) element("switch").hidden = !several;
}

function stopCamera() {
  camera.stop();
  element("camera-invitation").hidden = false;
  element("start").textContent = say("start");
  element("switch").hidden = true;
  element("camera-note").textContent = "";
  if (source === "camera") empty();
}

/** One frame after the other, at most ten a second, so that a phone stays cool. */
async function nameFrames() {
  const { video, round } = camera;
  while (camera.running && camera.round === round) {
    const soon = new Promise((resolve) => setTimeout(resolve, 100));
    if (video.videoWidth) {
      await classify(() =>
        prepared(pixelsOf(video, video.videoWidth, video.videoHeight), about.input),
      );
    }
    await soon;
  }
}

// ------------------------------------------------------------------ tabs and facts

const tabs = () => SOURCES.map((name) => element(`tab-${name}`)).filter((tab) => !tab.hidden);

function open(name) {
  if (source === name) return;
  if (source === "camera") stopCamera();
  source = name;
  for (const other of SOURCES) {
    element(`panel-${other}`).hidden = other !== name;
    element(`tab-${other}`).setAttribute("aria-selected", other === name);
    element(`tab-${other}`).tabIndex = other === name ? 0 : -1;
  }
  empty();
  if (name === "draw") nameDrawing();
  if (name === "picture") namePicture();
}

function prepareTabs() {
  element("tab-draw").hidden = !about.drawing;
  for (const tab of tabs()) tab.onclick = () => open(tab.id.slice("tab-".length));
  document.querySelector("[role=tablist]").onkeydown = (event) => {
    const all = tabs();
    const here = all.indexOf(document.activeElement);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined || here < 0) return;
    event.preventDefault();
    const next = all.at(to % all.length);
    next.focus();
    next.click();
  };
}

function prepareFacts() {
  const { labels, input, drawing, proof, runtime } = about;
  const few = labels.slice(0, 12).join(comma) + (labels.length > 12 ? comma + say("more") : "");
  element("summary").textContent = say("summary", { count: labels.length, labels: few });
  for (let rank = 0; rank < Math.min(MOST_BARS, labels.length); rank++) {
    const bar = document.createElement("li");
    const parts = ["label", "share", "track"].map((name) => {
      const part = document.createElement("span");
      part.className = name;
      return part;
    });
    parts[2].append(document.createElement("span"));
    parts[2].firstElementChild.className = "fill";
    bar.append(...parts);
    element("bars").append(bar);
  }
  const sure = percent(about.sure, 0);
  fact("aboutSure", say("sureRule", { sure, unsure: say("unsure") }),
    proof && say("sureMeasured", { ...proof, pictures: proof.pictures.toLocaleString(),
      answered: percent(proof.answered), right: percent(proof.right),
      accuracy: percent(proof.accuracy) }),
    say("sureLimits", { count: labels.length }));
  if (drawing) {
    const centre = say(drawing.centre === "mass" ? "mass" : "middle");
    fact("aboutDrawing", say("drawing", { box: percent(drawing.box, 0), centre }));
  }
  fact("aboutPictures", say("pictures", input));
  fact("aboutPlace", say("place", runtime), about.offline && say("placeKept"));
  fact("labels", labels.join(comma));
  fact(null, say("madeBy", { program: about.made_by }));
}

function fact(heading, ...sentences) {
  if (heading) {
    const title = document.createElement("h2");
    title.textContent = say(heading);
    element("facts").append(title);
  }
  for (const sentence of sentences.filter(Boolean)) {
    const paragraph = document.createElement("p");
    paragraph.textContent = sentence;
    element("facts").append(paragraph);
  }
}

// ------------------------------------------------------------------ the beginning

async function begin() {
  translate();
  element("trouble").hidden = true;
  about = await (await fetch("page.json")).json();
  prepareTabs();
  prepareFacts();
  if (about.drawing) prepareSheet();
  preparePictures();
  prepareCamera();
  open(about.drawing?.first ? "draw" : "picture");
  if (about.offline && isSecureContext) {
    navigator.serviceWorker?.register("service-worker.js").catch(console.warn);
  }
  probabilities = await load(about);
  document.body.dataset.state = "ready";
  if (waiting) classify(waiting); // drawn or chosen while the network was loading
  else empty();
}

begin().catch(trouble);
