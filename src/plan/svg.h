// Svg: builds a picture of rectangles, lines and text whose colours follow light and dark themes.
//
// Colours are classes of one style sheet (svg_style()), used by single files and by reports alike:
//   fills    f f2 b b2 bi bi2 w w2 comm comm2 gap mem0..mem7      2: the second direction
//   strokes  axis grid mark line0..line7
//   text     (plain) dim small in     in: on a coloured cell
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

namespace hadal::plan {

// Text as it stands in HTML, SVG and attributes.
std::string escape_xml(std::string_view text);

// CSS of every picture and report, variables for both themes.
std::string svg_style();

class Svg {
 public:
  Svg(double width, double height) : width_(width), height_(height) {}

  double width() const { return width_; }
  double height() const { return height_; }
  // A tooltip where `title` is not empty.
  void rect(double x, double y, double w, double h, std::string_view cls,
            std::string_view title = "");
  void line(double x1, double y1, double x2, double y2, std::string_view cls);
  void circle(double x, double y, double r, std::string_view cls, std::string_view title = "");
  // anchor: start, middle, end
  void text(double x, double y, std::string_view text, std::string_view anchor = "start",
            std::string_view cls = "");
  // Another picture, its corner at (x, y).
  void add(const Svg& other, double x, double y);
  // Raw elements, already escaped.
  void raw(std::string_view elements) { body_ += elements; }

  // Inside HTML that has svg_style(): scales to its column. `label` is read out by screen readers.
  std::string inline_html(std::string_view label) const;
  // A file of its own.
  std::string file(std::string_view label) const;

 private:
  std::string open(std::string_view label, bool is_file) const;
  double width_, height_;
  std::string body_;
};

}  // namespace hadal::plan
