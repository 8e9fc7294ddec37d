// Images that are dropped on the page, pasted into it, or chosen as a file.

import { byId } from "./element.js";

/** given: called with the file. */
export function takeImages(given) {
  const zone = byId("drop");
  const chooser = byId("picture-file");
  let over = 0;

  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (!carries(event)) return;
    over += 1;
    zone.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!carries(event)) return;
    over -= 1;
    if (over === 0) zone.classList.remove("over");
  });
  addEventListener("dragover", (event) => {
    if (carries(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    over = 0;
    zone.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) given(file);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    given(file);
  });
  chooser.addEventListener("change", () => {
    const [file] = chooser.files;
    chooser.value = ""; // the same file may be chosen again
    if (file) given(file);
  });
}
