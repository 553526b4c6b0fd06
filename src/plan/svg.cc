// Svg: elements and the style sheet.
// SPDX-License-Identifier: Apache-2.0
#include "plan/svg.h"

#include <fmt/core.h>

namespace hadal::plan {
namespace {

// Two digits are a tenth of the smallest thing drawn; trailing zeros go.
std::string number(double v) {
  std::string s = fmt::format("{:.2f}", v);
  while (s.back() == '0') s.pop_back();
  if (s.back() == '.') s.pop_back();
  return s == "-0" ? "0" : s;
}

std::string title_of(std::string_view title) {
  return title.empty() ? std::string() : fmt::format("<title>{}</title>", escape_xml(title));
}

constexpr std::string_view kStyle = R"css(
:root{--bg:#ffffff;--fg:#1c2126;--dim:#5c6670;--grid:#dfe3e8;--panel:#f5f7f9;--gap:#eceff2;
--f:#f0b429;--f2:#f7d27a;--b:#2f9e6e;--b2:#7cc6a4;--bi:#63b995;--bi2:#a9dcc4;--w:#3b7dd8;--w2:#8db4ea;
--comm:#9b6dd6;--comm2:#c9b1ec;--mark:#d64550;--in:#14181c;
--c0:#3b7dd8;--c1:#f0b429;--c2:#2f9e6e;--c3:#9b6dd6;--c4:#d64550;--c5:#4fb3bf;--c6:#8a7f72;--c7:#e07b39}
@media (prefers-color-scheme:dark){:root{--bg:#14181c;--fg:#e6e9ec;--dim:#9aa4ae;--grid:#333b43;
--panel:#1d2329;--gap:#232a31;--f:#d9a11e;--f2:#9c7a2b;--b:#35a877;--b2:#2b6e52;--bi:#4f9f7f;--bi2:#386353;
--w:#5b93e3;--w2:#3c5f94;--comm:#a983dd;--comm2:#63508a;--mark:#ef6b74;--in:#0d1013;
--c0:#5b93e3;--c1:#d9a11e;--c2:#35a877;--c3:#a983dd;--c4:#ef6b74;--c5:#5cc0cc;--c6:#a59a8d;--c7:#e8935a}}
@media print{:root{--bg:#ffffff;--fg:#000000;--dim:#444444;--grid:#cccccc;--panel:#ffffff;--gap:#eeeeee}}
svg.p{font:12px system-ui,sans-serif;fill:var(--fg);max-width:100%;height:auto}
svg.p .small{font-size:9px}svg.p .dim{fill:var(--dim)}svg.p .in{fill:var(--in);font-size:9px}
svg.p .head{font-size:14px;font-weight:600}
svg.p .bg{fill:var(--bg)}svg.p .gap{fill:var(--gap)}svg.p .panel{fill:var(--panel)}
svg.p .f{fill:var(--f)}svg.p .f2{fill:var(--f2)}svg.p .b{fill:var(--b)}svg.p .b2{fill:var(--b2)}
svg.p .bi{fill:var(--bi)}svg.p .bi2{fill:var(--bi2)}svg.p .w{fill:var(--w)}svg.p .w2{fill:var(--w2)}
svg.p .comm{fill:var(--comm)}svg.p .comm2{fill:var(--comm2)}
svg.p .mem0{fill:var(--c0)}svg.p .mem1{fill:var(--c1)}svg.p .mem2{fill:var(--c2)}svg.p .mem3{fill:var(--c3)}
svg.p .mem4{fill:var(--c4)}svg.p .mem5{fill:var(--c5)}svg.p .mem6{fill:var(--c6)}svg.p .mem7{fill:var(--c7)}
svg.p .axis{stroke:var(--dim);fill:none}svg.p .grid{stroke:var(--grid);fill:none}
svg.p .mark{stroke:var(--mark);fill:none;stroke-dasharray:4 3}
svg.p .line0{stroke:var(--c0);fill:none}svg.p .line1{stroke:var(--c1);fill:none}
svg.p .line2{stroke:var(--c2);fill:none}svg.p .line3{stroke:var(--c3);fill:none}
svg.p .line4{stroke:var(--c4);fill:none}svg.p .line5{stroke:var(--c5);fill:none}
svg.p .line6{stroke:var(--c6);fill:none}svg.p .line7{stroke:var(--c7);fill:none}
)css";

}  // namespace

std::string escape_xml(std::string_view text) {
  std::string out;
  for (char c : text) switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  return out;
}

std::string svg_style() { return std::string(kStyle); }

void Svg::rect(double x, double y, double w, double h, std::string_view cls,
               std::string_view title) {
  body_ += fmt::format(R"(<rect x="{}" y="{}" width="{}" height="{}" class="{}")", number(x),
                       number(y), number(w), number(h), cls);
  body_ += title.empty() ? "/>\n" : fmt::format(">{}</rect>\n", title_of(title));
}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view cls) {
  body_ += fmt::format(R"(<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>)"
                       "\n",
                       number(x1), number(y1), number(x2), number(y2), cls);
}

void Svg::circle(double x, double y, double r, std::string_view cls, std::string_view title) {
  body_ += fmt::format(R"(<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>)"
                       "\n",
                       number(x), number(y), number(r), cls, title_of(title));
}

void Svg::text(double x, double y, std::string_view text, std::string_view anchor,
               std::string_view cls) {
  body_ += fmt::format(R"(<text x="{}" y="{}")", number(x), number(y));
  if (anchor != "start") body_ += fmt::format(R"( text-anchor="{}")", anchor);
  if (!cls.empty()) body_ += fmt::format(R"( class="{}")", cls);
  body_ += fmt::format(">{}</text>\n", escape_xml(text));
}

void Svg::add(const Svg& other, double x, double y) {
  body_ += fmt::format("<g transform=\"translate({} {})\">\n", number(x), number(y)) + other.body_ +
           "</g>\n";
}

std::string Svg::open(std::string_view label, bool is_file) const {
  std::string tag = fmt::format(
      R"(<svg class="p" role="img" aria-label="{}" viewBox="0 0 {} {}" width="{}" height="{}")",
      escape_xml(label), number(width_), number(height_), number(width_), number(height_));
  if (is_file) tag += R"( xmlns="http://www.w3.org/2000/svg")";
  return tag + ">\n";
}

std::string Svg::inline_html(std::string_view label) const {
  return open(label, false) + body_ + "</svg>\n";
}

std::string Svg::file(std::string_view label) const {
  return open(label, true) + "<style>" + svg_style() + "</style>\n" +
         fmt::format(R"(<rect class="bg" width="{}" height="{}"/>)", number(width_),
                     number(height_)) +
         "\n" + body_ + "</svg>\n";
}

}  // namespace hadal::plan
