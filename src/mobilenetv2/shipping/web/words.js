// Every sentence of the page. {…} is filled in; text goes into the page as text, never as HTML.

const ENGLISH = {
  summary: "Knows {count} things: {labels}. Nothing leaves this device.",
  more: "…",
  source: "What is to be named",
  answer: "Answer",
  draw: "Draw",
  picture: "Picture",
  camera: "Camera",
  paper: "Sheet to draw on",
  invitation: "Draw here",
  keys: "With keys: arrows move the pen, space lowers and lifts it, Delete clears, Ctrl+Z takes back a stroke.",
  undo: "Undo",
  clear: "Clear",
  choose: "Choose a picture",
  dropping: "Choose a picture, drop it here, or paste it",
  pictureHint: "It is read here and sent nowhere.",
  pictureUnreadable: "{name}: this browser cannot read it as a picture.",
  start: "Start the camera",
  stop: "Stop",
  switch: "Other camera",
  cameraInvitation: "The camera is off",
  cameraOn: "Each picture is named here and sent nowhere.",
  cameraRefused: "The camera was refused. Allow it for this page in the browser's settings, or choose a picture instead.",
  cameraMissing: "There is no camera here. Choose a picture instead.",
  cameraBusy: "The camera cannot be started; another program may be using it.",
  cameraInsecure: "Browsers give the camera only to pages from https or from this computer itself.",
  seen: "What the network sees",
  seenLabel: "The picture as the network sees it",
  time: "{ms} ms for this picture",
  loading: "Loading the network: {size} MB",
  ready: { draw: "Draw something", picture: "Choose a picture", camera: "Start the camera" },
  unsure: "Not sure",
  perhaps: "perhaps {label}, {share}",
  spoken: "{label}, {share}",
  failed: "The page could not be started: {reason}",
  about: "About this page",
  aboutSure: "When it is not sure",
  sureRule: "Below a probability of {sure} for its best guess, the page says “{unsure}” (in the camera too, picture by picture).",
  sureMeasured: "On {pictures} pictures that it had not learned from ({data}), {answered} were answered so, and {right} of these answers were right; without the rule, {accuracy} of all.",
  sureLimits: "It was shown its {count} things and nothing else. Something else altogether gets one of these names too, now and then with a high probability.",
  aboutDrawing: "How a drawing is read",
  drawing: "The strokes are drawn anew, in one thickness, scaled so that the longer side takes {box} of the picture, and moved to the middle by their {centre}: as in the pictures that it learned from.",
  mass: "centre of mass",
  middle: "outer edges",
  aboutPictures: "How a picture is read",
  pictures: "Turned upright, transparency on white, the shorter side resized to {resize} px, the middle {height}×{width} px cut out: to the pixel as in training. Only a JPEG may come out a little different, because browsers decode it their own way.",
  aboutPlace: "Where it runs",
  place: "Wholly in this browser, by ONNX Runtime Web {version}, on the processor. Pictures stay on this device.",
  placeKept: "After the first visit it also works without a network.",
  labels: "Labels",
  madeBy: "Made by {program}.",
};

const CHINESE = {
  summary: "认识 {count} 类：{labels}。一切都在本机完成。",
  more: "……",
  source: "要识别的内容",
  answer: "结果",
  draw: "手写",
  picture: "图片",
  camera: "摄像头",
  paper: "画板",
  invitation: "在这里写",
  keys: "用键盘：方向键移动笔，空格落笔或抬笔，Delete 清空，Ctrl+Z 撤销一笔。",
  undo: "撤销",
  clear: "清空",
  choose: "选择图片",
  dropping: "选择图片，或拖到这里，或粘贴",
  pictureHint: "图片只在本机读取，不会发送出去。",
  pictureUnreadable: "{name}：浏览器读不出这张图片。",
  start: "打开摄像头",
  stop: "关闭",
  switch: "换一个摄像头",
  cameraInvitation: "摄像头未打开",
  cameraOn: "每一帧都在本机识别，不会发送出去。",
  cameraRefused: "摄像头被拒绝。请在浏览器设置里允许本页使用，或者改用图片。",
  cameraMissing: "这里没有摄像头，请改用图片。",
  cameraBusy: "摄像头打不开，可能正被别的程序占用。",
  cameraInsecure: "浏览器只允许 https 页面或本机页面使用摄像头。",
  seen: "网络看到的样子",
  seenLabel: "网络看到的图片",
  time: "这张图片用了 {ms} 毫秒",
  loading: "正在载入网络：{size} MB",
  ready: { draw: "写点什么吧", picture: "请选择图片", camera: "请打开摄像头" },
  unsure: "不确定",
  perhaps: "也许是 {label}，{share}",
  spoken: "{label}，{share}",
  failed: "页面无法启动：{reason}",
  about: "关于本页",
  aboutSure: "什么时候不确定",
  sureRule: "最可能的答案概率低于 {sure} 时，本页会说“{unsure}”（摄像头也一样，逐帧判断）。",
  sureMeasured: "在 {pictures} 张没有参加训练的图片上（{data}），按此规则回答了 {answered}，其中 {right} 正确；不用此规则时，全部图片的正确率为 {accuracy}。",
  sureLimits: "它只见过这 {count} 类。给它看别的东西，它也会从中选一个名字，有时概率还很高。",
  aboutDrawing: "怎样读手写",
  drawing: "笔画会按统一的粗细重画：较长的一边缩放到图片的 {box}，再按{centre}移到正中，和训练图片的做法一样。",
  mass: "重心",
  middle: "外框",
  aboutPictures: "怎样读图片",
  pictures: "先转正，透明处填白，短边缩放到 {resize} 像素，再裁出中间 {height}×{width} 像素：与训练时逐像素相同。只有 JPEG 可能略有差别，因为浏览器用自己的方式解码。",
  aboutPlace: "在哪里运行",
  place: "完全在这个浏览器里，用 ONNX Runtime Web {version} 在处理器上计算。图片不会离开本机。",
  placeKept: "第一次打开之后，没有网络也能用。",
  labels: "标签",
  madeBy: "由 {program} 生成。",
};

const chinese = navigator.language.toLowerCase().startsWith("zh");
const words = chinese ? CHINESE : ENGLISH;
const language = chinese ? "zh-CN" : "en";
export const comma = chinese ? "、" : ", ";

/** A sentence, filled in. */
export function say(key, values = {}) {
  const text = key.split(".").reduce((found, part) => found[part], words);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** 0.987 as 98.7 %, as the language writes it. */
export function percent(share, digits = 1) {
  const style = { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(language, style).format(share);
}

/** Puts the language's words where the page has places for them. */
export function translate() {
  document.documentElement.lang = language;
  for (const place of document.querySelectorAll("[data-word]")) {
    place.textContent = say(place.dataset.word);
  }
  for (const place of document.querySelectorAll("[data-label]")) {
    place.setAttribute("aria-label", say(place.dataset.label));
  }
}
