# gnuplot throughput.gp
set encoding utf8
set title 'Output tokens per second against batch' noenhanced
set xlabel 'requests under way' noenhanced
set ylabel 'tokens/s' noenhanced
set key below noenhanced
set grid
set style fill solid 0.8 border -1
set datafile missing 'NaN'
set logscale x 2
set yrange [0:*]
set terminal svg noenhanced size 800,480
set output 'throughput.svg'
plot 'throughput.dat' index 0 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'measured', \
     'throughput.dat' index 1 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'at most'
set terminal pngcairo noenhanced size 800,480
set output 'throughput.png'
plot 'throughput.dat' index 0 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'measured', \
     'throughput.dat' index 1 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'at most'
unset output
