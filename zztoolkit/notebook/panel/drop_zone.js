// A place to drop a file on, or to click to choose one. The file is sent in slices:
// the notebook's server rejects a message of more than some megabytes.
const SLICE = 4 << 20;    // bytes

async function send(model, file) {
  if (!file) return;
  const about = { name: file.name, size: file.size };
  const fits = file.size <= model.get("most");
  let at = 0;
  do {
    const slice = file.slice(at, fits ? at + SLICE : at);    // nothing of a file that is too large
    model.send({ ...about, at }, undefined, [await slice.arrayBuffer()]);
    at += SLICE;
  } while (fits && at < file.size);
}

export default {
  render({ model, el }) {
    const zone = document.createElement("div");
    zone.className = "zz-zone";
    zone.tabIndex = 0;
    zone.setAttribute("role", "button");
    const input = document.createElement("input");
    input.type = "file";
    input.hidden = true;
    el.append(zone, input);

    const showText = () => { zone.textContent = model.get("text"); };
    model.on("change:text", showText);
    showText();

    zone.onclick = () => input.click();
    zone.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      input.click();
    };
    input.onchange = () => {
      send(model, input.files[0]);
      input.value = "";
    };

    const take = (event) => {
      event.preventDefault();
      event.stopPropagation();
    };
    zone.ondragover = (event) => {
      take(event);
      zone.classList.add("zz-over");
    };
    zone.ondragleave = () => zone.classList.remove("zz-over");
    zone.ondrop = (event) => {
      take(event);
      zone.classList.remove("zz-over");
      send(model, event.dataTransfer.files[0]);
    };
  },
};
