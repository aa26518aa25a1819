"use strict";
// Without this script all steps stand below each other; with it one is shown, and the slider says which.
const slider = document.getElementById("step");
if (slider) {
  const frames = [...document.querySelectorAll("#frames > .frame")];
  const said = document.getElementById("said");
  const show = () => {
    const at = Number(slider.value) - 1;
    frames.forEach((frame, i) => { frame.hidden = i !== at; });
    const text = `${frames[at].dataset.step} of ${frames[frames.length - 1].dataset.step}`;
    said.textContent = text;
    slider.setAttribute("aria-valuetext", `step ${text}`);
  };
  slider.addEventListener("input", show);
  slider.parentElement.hidden = false;
  // Browsers keep where a slider stood; the page begins where the picture does.
  slider.value = "1";
  show();
}
