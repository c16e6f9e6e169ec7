# gnuplot roofline.gp
set encoding utf8
set title 'Decode steps under the roofline of this run' noenhanced
set xlabel 'operations per byte' noenhanced
set ylabel 'operations/s' noenhanced
set key below noenhanced
set grid
set style fill solid 0.8 border -1
set datafile missing 'NaN'
set logscale x 2
set logscale y 10
set terminal svg noenhanced size 800,480
set output 'roofline.svg'
plot 'roofline.dat' index 0 using 1:2 with lines lw 2 title 'roof', \
     'roofline.dat' index 1 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'measured, by batch'
set terminal pngcairo noenhanced size 800,480
set output 'roofline.png'
plot 'roofline.dat' index 0 using 1:2 with lines lw 2 title 'roof', \
     'roofline.dat' index 1 using 1:2 with linespoints lw 2 pt 7 ps 0.6 title 'measured, by batch'
unset output
